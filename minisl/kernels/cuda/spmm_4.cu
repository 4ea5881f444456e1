// spmm, rung 4: the sums leave through shared memory.
// A warp holds 32 tokens of one row, and tokens lie far apart in y: each of its stores went to 32 places. The tile is free by
// then, so the sums are turned around in it, and y is read and written side by side.
// Bytes per output: 8, where rung 3 moved 64. Operations as before.

#define ROWS 64     // of a tile of S
#define COLUMNS 64
#define TOKENS 32
#define WARPS 8

extern "C" __global__ void __launch_bounds__(32 * WARPS) spmm(const float* x, const float* values, const int* columns,
                                                              const int* starts, float* y, int n, int width, int out) {
    __shared__ float tile[COLUMNS][TOKENS + 1];  // one more, so that a column of it falls into different banks too
    const int lane = threadIdx.x, warp = threadIdx.y;
    const int row = blockIdx.x * ROWS, token = blockIdx.y * TOKENS;
    const int* start = starts + blockIdx.x * ((width + COLUMNS - 1) / COLUMNS) * ROWS;
    float sum[ROWS / WARPS] = {};
    for (int first = 0; first < width; first += COLUMNS, start += ROWS) {
        for (int t = warp; t < TOKENS; t += WARPS)
            for (int c = lane; c < COLUMNS; c += 32)
                tile[c][t] = token + t < n && first + c < width ? x[(size_t)(token + t) * width + first + c] : 0;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ROWS / WARPS; ++k)
            for (int p = start[warp + k * WARPS]; p < start[warp + k * WARPS + 1]; ++p)
                sum[k] += values[p] * tile[columns[p] - first][lane];
        __syncthreads();
    }
    for (int k = 0; k < ROWS / WARPS; ++k)
        tile[warp + k * WARPS][lane] = sum[k];
    __syncthreads();
    for (int t = warp; t < TOKENS && token + t < n; t += WARPS)
        for (int i = lane; i < ROWS && row + i < out; i += 32)
            y[(size_t)(token + t) * out + row + i] += tile[i][t];
}
