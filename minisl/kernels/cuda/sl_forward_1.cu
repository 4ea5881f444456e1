// sl_forward, rung 1: the factors in shared memory too.
// To build its tile of W each thread read a row of B and a column of A on its own, every word of them 16 times. Now the block
// copies 16 x 16 of each, uses them 16 times, and goes on along r: W's tile is itself a tiled product.
// Bytes per tile: 1 KB of x and 2 r / 16 KB of the factors, a sixteenth. Operations as before.

#define SIZE 16

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_forward(const float* x, const float* B, const float* A,
        const float* values, const int* rows, const int* columns, const int* starts, float* y,
        int n, int width, int out, int r, float scale) {
    __shared__ float W[SIZE][SIZE + 1], xs[SIZE][SIZE + 1], Bs[SIZE][SIZE + 1], As[SIZE][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.x * SIZE, token = blockIdx.y * SIZE;
    const int* start = starts + blockIdx.x * ((width + SIZE - 1) / SIZE) * SIZE;
    float sum = 0;
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
        xs[ty][tx] = token + ty < n && column + tx < width ? x[(size_t)(token + ty) * width + column + tx] : 0;
        __syncthreads();
        for (int p = start[0] + ty * SIZE + tx; p < start[SIZE]; p += SIZE * SIZE)
            atomicAdd(&W[rows[p] - row][columns[p] - column], values[p]);
        __syncthreads();
        for (int c = 0; c < SIZE; ++c)
            sum += xs[ty][c] * W[tx][c];
        __syncthreads();
    }
    if (token + ty < n && row + tx < out) y[(size_t)(token + ty) * out + row + tx] = sum;
}
