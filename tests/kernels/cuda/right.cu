// Right kernels: the emulator must run each as a GPU does. test_emulator.py launches them on both.

#define HALF 16
#ifndef SCALE
#define SCALE 2
#endif

extern "C" __global__ void places(long long* out) {
    int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    int z = blockIdx.z * blockDim.z + threadIdx.z;
    int width = gridDim.x * blockDim.x, height = gridDim.y * blockDim.y;
    int thread = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z;
    out[(z * height + y) * width + x] = thread + 1000 * blockIdx.x + 10000 * gridDim.z;
}

template <class T> __device__ T twice(T x) { return 2 * x; }

__device__ void store(float* to, float value) { *to = value; }

extern "C" __global__ void doubled(const float* __restrict__ x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) store(y + i, twice(x[i]));
}

extern "C" __global__ void scaled(float* x) { x[threadIdx.x] *= SCALE; }

extern "C" __global__ void types(double d, long long l, unsigned u, int i, float f, unsigned char c, const signed char* s,
                                 double* out) {
    out[0] = d;
    out[1] = l;
    out[2] = u;
    out[3] = i;
    out[4] = f;
    out[5] = c;
    out[6] = s[0];
}

extern "C" __global__ void turned(const float* x, float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

extern "C" __global__ void turned_dynamic(const float* x, float* y, int n) {
    extern __shared__ float tile[];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[n - 1 - threadIdx.x];
}

extern "C" __global__ void turned_in_warps(const float* x, float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ 31];
}

extern "C" __global__ void turned_in_half_warps(const float* x, float* y) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < HALF) __syncwarp(0x0000ffff); else __syncwarp(0xffff0000);
    y[threadIdx.x] = tile[threadIdx.x ^ 15];
}

extern "C" __global__ void sums(const float* x, float* y) {  // one tile, filled and read again and again
    __shared__ float tile[32];
    float sum = 0;
    for (int first = 0; first < 128; first += 32) {
        tile[threadIdx.x] = x[first + threadIdx.x];
        __syncthreads();
        for (int i = 0; i < 32; ++i)
            sum += tile[i];
        __syncthreads();
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void counted(int* count, const unsigned char* x) {
    atomicAdd(&count[x[blockIdx.x * blockDim.x + threadIdx.x]], 1);
}

extern "C" __global__ void bytes(unsigned char* x) { x[blockIdx.x * blockDim.x + threadIdx.x] += 3; }

extern "C" __global__ void all_read_one(const float* x, float* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = x[0] + x[1]; }

extern "C" __global__ void own_word_twice(float* x) {
    x[threadIdx.x] += 1;
    x[threadIdx.x] *= 2;
    __syncthreads();
    if (threadIdx.x == 0) x[5] += 1;
}

extern "C" __global__ void wide(const float4* x, float4* y) {
    const float4 v = x[threadIdx.x];
    y[threadIdx.x] = make_float4(v.w, v.z, v.y, v.x);
}

extern "C" __global__ void atomics(int* x, unsigned* old) {
    old[threadIdx.x] = atomicAdd(&x[0], 2);
    atomicMax(&x[1], (int)threadIdx.x);
    atomicMin(&x[2], (int)threadIdx.x - 7);
    if (threadIdx.x == 9) x[3] = atomicExch(&x[4], 8);
    if (threadIdx.x == 9) x[5] = atomicCAS(&x[6], 3, 4);
    if (threadIdx.x == 9) x[7] = atomicCAS(&x[6], 3, 5);
}

extern "C" __global__ void functions(const float* x, float* y) {
    y[0] = __popc(0xf1);
    y[1] = __ffs(8);
    y[2] = __clz(1);
    y[3] = __clz(0);
    y[4] = min(3, 2u);
    y[5] = max(2.5f, 1.0f);
    y[6] = rsqrtf(x[3]);
    y[7] = fmaxf(x[0], x[1]);
    y[8] = __ldg(x + 2);
    y[9] = __fdividef(x[0], x[3]);
    y[10] = warpSize;
}

extern "C" __global__ void shuffles(const float* x, float* y) {
    const int t = threadIdx.x;
    const float v = x[t];
    y[t] = __shfl_down_sync(0xffffffff, v, 3);
    y[32 + t] = __shfl_up_sync(0xffffffff, v, 3);
    y[64 + t] = __shfl_xor_sync(0xffffffff, v, 5);
    y[96 + t] = __shfl_sync(0xffffffff, v, 7);
    y[128 + t] = __shfl_down_sync(0xffffffff, v, 3, 8);
    y[160 + t] = __shfl_up_sync(0xffffffff, v, 3, 8);
    y[192 + t] = __shfl_xor_sync(0xffffffff, v, 5, 8);
    y[224 + t] = __shfl_sync(0xffffffff, v, 9, 8);
    y[256 + t] = __shfl_sync(0xffffffff, v, (t + 1) % 32);
    y[288 + t] = __shfl_down_sync(0xffffffff, (double)v, 1);
    if (t < 16) y[320 + t] = __shfl_xor_sync(0x0000ffff, v, 1);
}

extern "C" __global__ void votes(const int* x, unsigned* y) {
    const int t = threadIdx.x;
    y[t] = __ballot_sync(0xffffffff, x[t] > 20);
    y[64 + t] = __any_sync(0xffffffff, x[t] > 50);
    y[128 + t] = __all_sync(0xffffffff, x[t] > 0);
    if (t % 32 >= 16) y[192 + t] = __ballot_sync(0xffff0000, t % 2 == 1) + __all_sync(0xffff0000, t % 32 >= 16);
}

extern "C" __global__ void warp_sums(const float* x, float* y) {  // 40 threads: the second warp is a short one
    float sum = x[threadIdx.x];
    for (int distance = threadIdx.x < 32 ? 16 : 4; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
    __syncwarp();
    y[threadIdx.x] = sum;
}

extern "C" __global__ void stat(float* x) { x[threadIdx.x] = 7; }
