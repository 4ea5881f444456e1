// sl_backward_dx, rung 0: a tile of W, built and used at once.
// dX = dY W with W = s B A + S, as in sl_forward: for each 16 rows of W the block builds a tile in shared memory, adds S's
// entries there, and multiplies. Here W is read by columns, so its tile lies the right way round as it is.
// Bytes per tile: 1 KB of dY and W's factors r times over; of W none. Operations: 2 per product, and 2 r / 16 to build W for it.

#define SIZE 16

extern "C" __global__ void __launch_bounds__(SIZE * SIZE) sl_backward_dx(const float* dy, const float* B, const float* A,
        const float* values, const int* rows, const int* columns, const int* starts, float* dx,
        int n, int width, int out, int r, float scale) {
    __shared__ float W[SIZE][SIZE + 1], dys[SIZE][SIZE + 1];
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int column = blockIdx.x * SIZE, token = blockIdx.y * SIZE;
    float sum = 0;
    for (int row = 0; row < out; row += SIZE) {
        const int* start = starts + (row / SIZE * gridDim.x + blockIdx.x) * SIZE;
        float w = 0;
        if (row + ty < out && column + tx < width)
            for (int q = 0; q < r; ++q)
                w += B[(row + ty) * r + q] * A[q * width + column + tx];
        W[ty][tx] = scale * w;
        dys[ty][tx] = token + ty < n && row + tx < out ? dy[(size_t)(token + ty) * out + row + tx] : 0;
        __syncthreads();
        for (int p = start[0] + ty * SIZE + tx; p < start[SIZE]; p += SIZE * SIZE)
            atomicAdd(&W[rows[p] - row][columns[p] - column], values[p]);
        __syncthreads();
        for (int i = 0; i < SIZE; ++i)
            sum += dys[ty][i] * W[i][tx];
        __syncthreads();
    }
    if (token + ty < n && column + tx < width) dx[(size_t)(token + ty) * width + column + tx] = sum;
}
