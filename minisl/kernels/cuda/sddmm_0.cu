// sddmm, rung 0: a thread per entry.
// dvalues[k] = sum_t dY[t, row_k] X[t, col_k]. Threads next to each other have entries next to each other, mostly of one row:
// they share a word of dY, and find their words of x in 32 places of one token.
// Bytes per entry and token: 8, about 36 as they travel. Operations: 2.

extern "C" __global__ void sddmm(const float* dy, const float* x, const int* rows, const int* columns, const int* order,
                                 float* dvalues, int n, int width, int out, int nnz) {
    const int k = blockIdx.x * blockDim.x + threadIdx.x;
    if (k >= nnz) return;
    float sum = 0;
    for (int t = 0; t < n; ++t)
        sum += dy[(size_t)t * out + rows[k]] * x[(size_t)t * width + columns[k]];
    dvalues[order[k]] = sum;
}
