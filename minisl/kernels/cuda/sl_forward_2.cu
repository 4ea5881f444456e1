// sl_forward, rung 2: a tile of W for 128 tokens.
// Building W cost r / 16 times as much as using it. Now each thread makes eight outputs, for eight tokens: the tile is built
// once for 128 tokens, and a word of it, once read, serves eight products.
// Bytes per tile: 8 KB of x, 2 r / 16 KB of the factors. Operations: 2 per product, and 2 r / 128 to build W for it.

#define SIZE 16
#define EACH 8                 // tokens of a thread
#define TOKENS (EACH * SIZE)

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_forward(const float* x, const float* B, const float* A,
        const float* values, const int* rows, const int* columns, const int* starts, float* y,
        int n, int width, int out, int r, float scale) {
    __shared__ float W[SIZE][SIZE + 1], xs[TOKENS][SIZE + 1], Bs[SIZE][SIZE + 1], As[SIZE][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.x * SIZE, token = blockIdx.y * TOKENS;
    const int* start = starts + blockIdx.x * ((width + SIZE - 1) / SIZE) * SIZE;
    float sum[EACH] = {};
    for (int column = 0; column < width; column += SIZE, start += SIZE) {
        float w = 0;
        for (int rank = 0; rank < r; rank += SIZE) {
            Bs[ty][tx] = row + ty < out && rank + tx < r ? B[(row + ty) * r + rank + tx] : 0;
            As[ty][tx] = rank + ty < r && column + tx < width ? A[(rank + ty) * width + column + tx] : 0;
            __syncthreads();
            for (int q = 0; q < SIZE; ++q)
                w += Bs[ty][q] * As[q][tx];
            __syncthreads();
        }
        W[ty][tx] = scale * w;
        for (int t = ty; t < TOKENS; t += SIZE)
            xs[t][tx] = token + t < n && column + tx < width ? x[(size_t)(token + t) * width + column + tx] : 0;
        __syncthreads();
        for (int p = start[0] + ty * SIZE + tx; p < start[SIZE]; p += SIZE * SIZE)
            atomicAdd(&W[rows[p] - row][columns[p] - column], values[p]);
        __syncthreads();
        for (int c = 0; c < SIZE; ++c)
            for (int k = 0; k < EACH; ++k)
                sum[k] += xs[ty + k * SIZE][c] * W[tx][c];
        __syncthreads();
    }
    for (int k = 0; k < EACH; ++k)
        if (token + ty + k * SIZE < n && row + tx < out) y[(size_t)(token + ty + k * SIZE) * out + row + tx] = sum[k];
}
