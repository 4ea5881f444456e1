// sl_forward, rung 0: a tile of W, built and used at once.
// Y = X W^T with W = s B A + S. A block makes 16 x 16 outputs; for each 16 columns of W it builds that tile in shared memory, a
// thread per element, adds S's entries there, and multiplies. W as a whole never exists, in no memory.
// Bytes per tile: 1 KB of x and W's factors r times over; of W none. Operations: 2 per product, and 2 r / 16 to build W for it.

#define SIZE 16

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_forward(const float* x, const float* B, const float* A,
        const float* values, const int* rows, const int* columns, const int* starts, float* y,
        int n, int width, int out, int r, float scale) {
    __shared__ float W[SIZE][SIZE + 1], xs[SIZE][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.x * SIZE, token = blockIdx.y * SIZE;
    const int* start = starts + blockIdx.x * ((width + SIZE - 1) / SIZE) * SIZE;
    float sum = 0;
    for (int column = 0; column < width; column += SIZE, start += SIZE) {
        float w = 0;
        if (row + ty < out && column + tx < width)
            for (int q = 0; q < r; ++q)
                w += B[(row + ty) * r + q] * A[q * width + column + tx];
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
