// spmm, rung 3: tiles of tokens in shared memory.
// x, not the entries, is what costs. A block copies a tile of it, 32 tokens by 64 columns, side by side as x lies in memory, and
// uses it for 64 rows of S: entries come sorted by tile (64 x 64 of S), then by row. Tokens lie side by side in the tile, so a
// warp, one token a thread, reads 32 different banks. A warp has 8 of the rows, and each thread a sum for each.
// Bytes per entry and token: 8 / 32 for the entry; x once for every 64 rows. Operations: 2. Shared memory: 4 bytes.

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
    for (int k = 0; k < ROWS / WARPS; ++k) {
        const int i = row + warp + k * WARPS;
        if (i < out && token + lane < n) y[(size_t)(token + lane) * out + i] += sum[k];
    }
}
