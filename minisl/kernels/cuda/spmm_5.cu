// spmm, rung 5: four tokens a thread, 16 bytes at a time.
// For each product, rung 4 read one word of the tile and an entry that only 32 tokens shared. With four tokens side by side a
// thread reads them at once, an entry serves 128 tokens, and four sums grow independently of each other.
// Bytes per entry and token: 8 / 128 for the entry; the tile is read 16 bytes at a time. Operations: 2,
// with 8 instructions for 4 products instead of 20.

#define ROWS 64     // of a tile of S
#define COLUMNS 64
#define TOKENS 128
#define WARPS 8

extern "C" __global__ void __launch_bounds__(32 * WARPS) spmm(const float* x, const float* values, const int* columns,
                                                              const int* starts, float* y, int n, int width, int out) {
    __shared__ __align__(16) float tile[COLUMNS][TOKENS + 4];  // 16 bytes more, and every row still begins at a multiple of 16
    const int lane = threadIdx.x, warp = threadIdx.y;
    const int row = blockIdx.x * ROWS, token = blockIdx.y * TOKENS;
    const int* start = starts + blockIdx.x * ((width + COLUMNS - 1) / COLUMNS) * ROWS;
    float4 sum[ROWS / WARPS] = {};
    for (int first = 0; first < width; first += COLUMNS, start += ROWS) {
        for (int t = warp; t < TOKENS; t += WARPS)
            for (int c = lane; c < COLUMNS; c += 32)
                tile[c][t] = token + t < n && first + c < width ? x[(size_t)(token + t) * width + first + c] : 0;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < ROWS / WARPS; ++k)
            for (int p = start[warp + k * WARPS]; p < start[warp + k * WARPS + 1]; ++p) {
                const float v = values[p];
                const float4 x4 = *(const float4*)&tile[columns[p] - first][4 * lane];
                sum[k].x += v * x4.x;
                sum[k].y += v * x4.y;
                sum[k].z += v * x4.z;
                sum[k].w += v * x4.w;
            }
        __syncthreads();
    }
#pragma unroll
    for (int k = 0; k < ROWS / WARPS; ++k)
        *(float4*)&tile[warp + k * WARPS][4 * lane] = sum[k];
    __syncthreads();
    for (int t = warp; t < TOKENS && token + t < n; t += WARPS)
        for (int i = lane; i < ROWS && row + i < out; i += 32)
            y[(size_t)(token + t) * out + row + i] += tile[i][t];
}
