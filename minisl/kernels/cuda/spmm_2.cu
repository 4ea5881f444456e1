// spmm, rung 2: a row's entries in shared memory, a token per thread.
// Every token needs the same entries. A block of 128 tokens reads them once, into memory that its threads share, 128 at a time;
// the barriers keep fast threads from reading what is not there yet, and from overwriting what slow ones still read.
// Bytes per entry and token: 8 / 128 for the entry, and 32 of x: neighbouring threads read rows of x that
// lie far apart. Operations: 2.

#define TOKENS 128

extern "C" __global__ void __launch_bounds__(TOKENS) spmm(const float* x, const float* values, const int* columns,
                                                          const int* starts, float* y, int n, int width, int out) {
    __shared__ float value[TOKENS];
    __shared__ int column[TOKENS];
    const int i = blockIdx.x;
    const int t = blockIdx.y * TOKENS + threadIdx.x;
    const float* xt = x + (size_t)min(t, n - 1) * width;  // a thread past the last token stays, for the barriers
    float sum = 0;
    for (int first = starts[i]; first < starts[i + 1]; first += TOKENS) {
        const int count = min(TOKENS, starts[i + 1] - first);
        if (threadIdx.x < count) {
            value[threadIdx.x] = values[first + threadIdx.x];
            column[threadIdx.x] = columns[first + threadIdx.x];
        }
        __syncthreads();
        for (int p = 0; p < count; ++p)
            sum += value[p] * xt[column[p]];
        __syncthreads();
    }
    if (t < n) y[(size_t)t * out + i] += sum;
}
