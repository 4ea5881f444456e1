// scatter_add, rung 1: a thread per entry.
// All entries at once. Two of them may name the same position, so the addition is atomic: nobody can come between its read and
// its write. Where all positions differ this costs nothing, the addition is done where W lies, in the L2 cache.
// Bytes: 16 an entry, but W moves in sectors of 32, so 72 where entries are far apart. Operations: 1 an entry.

extern "C" __global__ void scatter_add(float* W, const int* index, const float* values, int nnz) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k < nnz) atomicAdd(&W[index[k]], values[k]);
}
