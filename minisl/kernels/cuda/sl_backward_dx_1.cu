// sl_backward_dx, rung 1: a tile of W for 128 tokens.
// Eight tokens a thread: the tile is built once for 128 of them, and a word of it, once read, serves eight products.
// Bytes per tile: 8 KB of dY; W's factors r times over still, as in sl_forward's rung 0. Operations: 2 per product, and 2 r / 128
// to build W for it.

#define SIZE 16
#define EACH 8                 // tokens of a thread
#define TOKENS (EACH * SIZE)

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_backward_dx(const float* dy, const float* B, const float* A,
        const float* values, const int* rows, const int* columns, const int* starts, float* dx,
        int n, int width, int out, int r, float scale) {
    __shared__ float W[SIZE][SIZE + 1], dys[TOKENS][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int column = blockIdx.x * SIZE, token = blockIdx.y * TOKENS;
    float sum[EACH] = {};
    for (int row = 0; row < out; row += SIZE) {
        const int* start = starts + (row / SIZE * gridDim.x + blockIdx.x) * SIZE;
        float w = 0;
        if (row + ty < out && column + tx < width)
            for (int q = 0; q < r; ++q)
                w += B[(row + ty) * r + q] * A[q * width + column + tx];
        W[ty][tx] = scale * w;
        for (int t = ty; t < TOKENS; t += SIZE)
            dys[t][tx] = token + t < n && row + tx < out ? dy[(size_t)(token + t) * out + row + tx] : 0;
        __syncthreads();
        for (int p = start[0] + ty * SIZE + tx; p < start[SIZE]; p += SIZE * SIZE)
            atomicAdd(&W[rows[p] - row][columns[p] - column], values[p]);
        __syncthreads();
        for (int i = 0; i < SIZE; ++i)
            for (int k = 0; k < EACH; ++k)
                sum[k] += dys[ty + k * SIZE][i] * W[i][tx];
        __syncthreads();
    }
    for (int k = 0; k < EACH; ++k)
        if (token + ty + k * SIZE < n && column + tx < width) dx[(size_t)(token + ty + k * SIZE) * width + column + tx] = sum[k];
}
