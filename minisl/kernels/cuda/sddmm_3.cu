// sddmm, rung 3: four tokens at a time.
// The tiles are turned round, tokens side by side, so a thread reads four tokens of its entry with one load of 16 bytes: two
// loads for four products, where rung 2 had eight.
// Bytes and operations as before. What is worse: the copy, which stores a token's words 36 apart, into 8 of the 32 banks.

#define SIZE 64      // of a tile of S, rows and columns
#define TOKENS 32
#define THREADS 256

extern "C" __global__ void __launch_bounds__(THREADS) sddmm(const float* dy, const float* x, const int* rows,
        const int* columns, const int* order, const int* starts, float* parts, int n, int width, int out, int nnz) {
    __shared__ __align__(16) float dys[SIZE][TOKENS + 4], xs[SIZE][TOKENS + 4];
    const int row = blockIdx.x * SIZE, column = blockIdx.y * SIZE;
    const int* start = starts + (blockIdx.x * gridDim.y + blockIdx.y) * SIZE;
    const int begin = start[0], end = start[SIZE];
    const int share = (n + gridDim.z - 1) / gridDim.z, from = blockIdx.z * share, to = min(n, from + share);
    for (int p = begin; p < end; p += THREADS) {
        const int k = min(p + (int)threadIdx.x, end - 1);  // a thread without an entry helps to copy
        const int i = rows[k] - row, j = columns[k] - column;
        float sum = 0;
        for (int token = from; token < to; token += TOKENS) {
            for (int e = threadIdx.x; e < TOKENS * SIZE; e += THREADS) {
                const int t = e / SIZE, c = e % SIZE;
                dys[c][t] = token + t < to && row + c < out ? dy[(size_t)(token + t) * out + row + c] : 0;
                xs[c][t] = token + t < to && column + c < width ? x[(size_t)(token + t) * width + column + c] : 0;
            }
            __syncthreads();
            for (int t = 0; t < TOKENS; t += 4) {
                const float4 g = *(const float4*)&dys[i][t], v = *(const float4*)&xs[j][t];
                sum += g.x * v.x + g.y * v.y + g.z * v.z + g.w * v.w;
            }
            __syncthreads();
        }
        if (p + threadIdx.x < end) parts[(size_t)blockIdx.z * nnz + order[k]] = sum;
    }
}
