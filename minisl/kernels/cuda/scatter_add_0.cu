// scatter_add, rung 0: one thread walks over all entries.
// W[index[k]] += values[k], one after the other: the definition. A GPU has room for 200,000 threads at a time; one is at work.
// Bytes: 16 an entry (position, value, W read and written). Operations: 1 an entry.

extern "C" __global__ void scatter_add(float* W, const int* index, const float* values, int nnz) {
    for (int k = 0; k < nnz; ++k)
        W[index[k]] += values[k];
}
