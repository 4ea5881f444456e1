"""`pytest -p no_pool`: every array on a GPU gets memory of its own, so that compute-sanitizer sees where it ends."""

import cupy

cupy.cuda.set_allocator(None)
