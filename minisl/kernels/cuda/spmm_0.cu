// spmm, rung 0: a thread per output.
// Y += X S^T: thread (t, i) adds up row i of S times token t. Neighbouring threads have neighbouring rows, so each load of a
// column or a value finds 32 different places: the entries travel 32 bytes at a time, and 4 are used.
// Bytes per entry and token: 8 for the entry and 4 of x, 72 to 96 as they travel. Operations: 2.

extern "C" __global__ void spmm(const float* x, const float* values, const int* columns, const int* starts, float* y,
                                int n, int width, int out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;  // row of S
    const int t = blockIdx.y * blockDim.y + threadIdx.y;  // token
    if (i >= out || t >= n) return;
    const float* xt = x + (size_t)t * width;
    float sum = 0;
    for (int p = starts[i]; p < starts[i + 1]; ++p)
        sum += values[p] * xt[columns[p]];
    y[(size_t)t * out + i] += sum;
}
