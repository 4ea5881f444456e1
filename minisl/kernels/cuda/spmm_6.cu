// spmm, rung 6: a copy that meets every bank once.
// Neighbouring columns lie 132 words apart in the tile, so 32 threads with a column each, side by side in x, stored into 8 of the
// 32 banks, four to each: four times the time, and more than the products took. Now 32 threads copy 8 columns of 4 tokens: 4 c +
// t is different for each. x is still read a whole sector (8 words) at a time, if rows of x begin with one: width a multiple of
// 8. The way back to y is the same.
// Bytes and operations as before.

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
        for (int t = 4 * warp + lane / 8; t < TOKENS; t += 4 * WARPS)
            for (int c = lane % 8; c < COLUMNS; c += 8)
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
    for (int t = 4 * warp + lane / 8; t < TOKENS && token + t < n; t += 4 * WARPS)
        for (int i = lane % 8; i < ROWS && row + i < out; i += 8)
            y[(size_t)(token + t) * out + row + i] += tile[i][t];
}
