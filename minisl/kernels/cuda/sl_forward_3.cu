// sl_forward, rung 3: 64 x 64 outputs a block, 4 x 4 a thread.
// A thread with 8 outputs of one row reads 9 words of shared memory for 8 products; with 4 tokens of 4 rows it reads 8 for 16.
// The tile of W is 64 x 16 now: 4 elements for each thread to build.
// Bytes per tile: 4 KB of x, 5 r / 16 KB of the factors. Operations: 2 per product, and 2 r / 64 to build W for it.

#define SIZE 16
#define EACH 4                // rows, and tokens, of a thread
#define ROWS (EACH * SIZE)    // of a tile of S; it has SIZE columns
#define TOKENS (EACH * SIZE)

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_forward(const float* x, const float* B, const float* A,
        const float* values, const int* rows, const int* columns, const int* starts, float* y,
        int n, int width, int out, int r, float scale) {
    __shared__ float W[ROWS][SIZE + 1], xs[TOKENS][SIZE + 1], Bs[ROWS][SIZE + 1], As[SIZE][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.x * ROWS, token = blockIdx.y * TOKENS;
    const int* start = starts + blockIdx.x * ((width + SIZE - 1) / SIZE) * ROWS;
    float sum[EACH][EACH] = {};
    for (int column = 0; column < width; column += SIZE, start += ROWS) {
        float w[EACH] = {};
        for (int rank = 0; rank < r; rank += SIZE) {
            for (int i = ty; i < ROWS; i += SIZE)
                Bs[i][tx] = row + i < out && rank + tx < r ? B[(row + i) * r + rank + tx] : 0;
            As[ty][tx] = rank + ty < r && column + tx < width ? A[(rank + ty) * width + column + tx] : 0;
            __syncthreads();
            for (int q = 0; q < SIZE; ++q)
                for (int l = 0; l < EACH; ++l)
                    w[l] += Bs[ty + l * SIZE][q] * As[q][tx];
            __syncthreads();
        }
        for (int l = 0; l < EACH; ++l)
            W[ty + l * SIZE][tx] = scale * w[l];
        for (int t = ty; t < TOKENS; t += SIZE)
            xs[t][tx] = token + t < n && column + tx < width ? x[(size_t)(token + t) * width + column + tx] : 0;
        __syncthreads();
        for (int p = start[0] + ty * SIZE + tx; p < start[ROWS]; p += SIZE * SIZE)
            atomicAdd(&W[rows[p] - row][columns[p] - column], values[p]);
        __syncthreads();
        for (int c = 0; c < SIZE; ++c)
            for (int k = 0; k < EACH; ++k)
                for (int l = 0; l < EACH; ++l)
                    sum[k][l] += xs[ty + k * SIZE][c] * W[tx + l * SIZE][c];
        __syncthreads();
    }
    for (int k = 0; k < EACH; ++k)
        for (int l = 0; l < EACH; ++l) {
            const int t = token + ty + k * SIZE, i = row + tx + l * SIZE;
            if (t < n && i < out) y[(size_t)t * out + i] = sum[k][l];
        }
}
