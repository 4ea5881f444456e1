// sl_backward_dw, rung 0: a tile of dW, summed up and spent at once.
// A block sums its 16 x 16 tile of dW = dY^T X over all tokens, in registers, and spends it: dvalues = dW where S has entries,
// dB += s dW A^T, dA += s B^T dW. Many tiles add to one place of dB and dA, so by atomics. dW never reaches global memory.
// Bytes: dY and x once for every 16 columns and rows; of dW none. Operations: 2 per token and element, and 4 r to spend it.

#define SIZE 16

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_backward_dw(const float* dy, const float* x, const float* B,
        const float* A, const int* rows, const int* columns, const int* order, const int* starts, float* dB, float* dA,
        float* dvalues, int n, int width, int out, int r, float scale) {
    __shared__ float dW[SIZE][SIZE + 1], dys[SIZE][SIZE + 1], xs[SIZE][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.x * SIZE, column = blockIdx.y * SIZE;
    const int* start = starts + (blockIdx.x * gridDim.y + blockIdx.y) * SIZE;
    float sum = 0;
    for (int token = 0; token < n; token += SIZE) {
        dys[ty][tx] = token + ty < n && row + tx < out ? dy[(size_t)(token + ty) * out + row + tx] : 0;
        xs[ty][tx] = token + ty < n && column + tx < width ? x[(size_t)(token + ty) * width + column + tx] : 0;
        __syncthreads();
        for (int t = 0; t < SIZE; ++t)
            sum += dys[t][ty] * xs[t][tx];
        __syncthreads();
    }
    dW[ty][tx] = sum;
    __syncthreads();
    for (int p = start[0] + ty * SIZE + tx; p < start[SIZE]; p += SIZE * SIZE)
        dvalues[order[p]] = dW[rows[p] - row][columns[p] - column];
    for (int q = tx; q < r; q += SIZE) {
        float b = 0, a = 0;
        for (int c = 0; c < SIZE; ++c) {
            if (column + c < width) b += dW[ty][c] * A[q * width + column + c];
            if (row + c < out) a += B[(row + c) * r + q] * dW[c][ty];
        }
        if (row + ty < out) atomicAdd(&dB[(row + ty) * r + q], scale * b);
        if (column + ty < width) atomicAdd(&dA[q * width + column + ty], scale * a);
    }
}
