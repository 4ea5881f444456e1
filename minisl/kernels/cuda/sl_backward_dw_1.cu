// sl_backward_dw, rung 1: a tile of 64 rows, four a thread.
// A word of x, once read, serves four products, x is read for every 64 rows instead of 16, and a tile four times as high adds to
// dA a quarter as often.
// Bytes: dY once for every 16 columns, x once for every 64 rows. Operations: as before.

#define SIZE 16
#define LONG 4  // rows of a thread

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_backward_dw(const float* dy, const float* x, const float* B,
        const float* A, const int* rows, const int* columns, const int* order, const int* starts, float* dB, float* dA,
        float* dvalues, int n, int width, int out, int r, float scale) {
    __shared__ float dW[LONG * SIZE][SIZE + 1], dys[SIZE][LONG * SIZE + 1], xs[SIZE][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.x * LONG * SIZE, column = blockIdx.y * SIZE;
    float sum[LONG] = {};
    for (int token = 0; token < n; token += SIZE) {
        for (int i = tx; i < LONG * SIZE; i += SIZE)
            dys[ty][i] = token + ty < n && row + i < out ? dy[(size_t)(token + ty) * out + row + i] : 0;
        xs[ty][tx] = token + ty < n && column + tx < width ? x[(size_t)(token + ty) * width + column + tx] : 0;
        __syncthreads();
        for (int t = 0; t < SIZE; ++t)
            for (int l = 0; l < LONG; ++l)
                sum[l] += dys[t][ty + l * SIZE] * xs[t][tx];
        __syncthreads();
    }
    for (int l = 0; l < LONG; ++l)
        dW[ty + l * SIZE][tx] = sum[l];
    __syncthreads();
    for (int l = 0; l < LONG && row + l * SIZE < out; ++l) {
        const int* start = starts + ((blockIdx.x * LONG + l) * gridDim.y + blockIdx.y) * SIZE;
        for (int p = start[0] + ty * SIZE + tx; p < start[SIZE]; p += SIZE * SIZE)
            dvalues[order[p]] = dW[rows[p] - row][columns[p] - column];
    }
    for (int q = tx; q < r; q += SIZE) {
        float a = 0;
        for (int i = 0; i < LONG * SIZE; ++i)
            if (row + i < out) a += B[(row + i) * r + q] * dW[i][ty];
        if (column + ty < width) atomicAdd(&dA[q * width + column + ty], scale * a);
        for (int i = ty; i < LONG * SIZE && row + i < out; i += SIZE) {
            float b = 0;
            for (int c = 0; c < SIZE; ++c)
                if (column + c < width) b += dW[i][c] * A[q * width + column + c];
            atomicAdd(&dB[(row + i) * r + q], scale * b);
        }
    }
}
