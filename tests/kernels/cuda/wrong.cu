// Wrong kernels. The emulator must refuse each in a line marked "here", or, where that depends on the order of threads, in one
// marked "or here". test_emulator.py launches them.

__device__ float read_beyond(const float* x, int i) {
    return x[i + 8];  // here
}

extern "C" __global__ void beyond(float* x, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) x[i] = i;  // here
}

extern "C" __global__ void before(const float* x, float* y) {
    y[threadIdx.x] = x[(int)threadIdx.x - 1];  // here
}

extern "C" __global__ void wide_beyond(const float4* x, float4* y) {
    y[threadIdx.x] = x[threadIdx.x];  // here
}

extern "C" __global__ void wide_beyond_in_part(const float* x, float4* y) {
    y[threadIdx.x] = *(const float4*)(x + 4 * threadIdx.x);  // here
}

extern "C" __global__ void atomic_beyond(int* x) {
    atomicAdd(&x[4 * threadIdx.y + threadIdx.x], 1);  // here
}

extern "C" __global__ void calls_what_reads_beyond(float* x) {
    x[0] = read_beyond(x, threadIdx.x);
}

extern "C" __global__ void far_away(float* x) {
    x[1 << 28] = 1;  // here
}

extern "C" __global__ void dynamic_beyond(float* x) {
    extern __shared__ float dynamic[];
    dynamic[threadIdx.x] = x[threadIdx.x];  // here
    __syncthreads();
    x[threadIdx.x] = dynamic[7 - threadIdx.x];
}

extern "C" __global__ void static_beyond(float* x, int n) {
    __shared__ float tile[8];
    float* words = tile;
    words[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = words[threadIdx.x + n];  // here
}

extern "C" __global__ void unwritten(float* x) {
    __shared__ float tile[8];
    if (threadIdx.x != 5) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[threadIdx.x];  // here
}

extern "C" __global__ void unwritten_in_block_1(float* x) {
    __shared__ float tile[4];
    if (blockIdx.x == 0) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[4 * blockIdx.x + threadIdx.x] = tile[threadIdx.x];  // here
}

extern "C" __global__ void sum_of_nothing(float* x) {
    __shared__ float total;
    atomicAdd(&total, x[threadIdx.x]);  // here
    __syncthreads();
    x[threadIdx.x] = total;
}

extern "C" __global__ void unwritten_byte(unsigned char* x) {
    __shared__ unsigned char tile[8];
    if (threadIdx.x != 6) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = tile[threadIdx.x];  // here
}

extern "C" __global__ void unwritten_dynamic(float* x) {
    extern __shared__ float more[];
    if (threadIdx.x > 0) more[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = more[threadIdx.x];  // here
}

extern "C" __global__ void race_in_a_warp(float* x) {
    __shared__ float tile[32];
    tile[threadIdx.x] = 0;
    __syncthreads();
    tile[threadIdx.x] = x[threadIdx.x];  // here
    x[threadIdx.x] = tile[threadIdx.x ^ 1];  // or here
}

extern "C" __global__ void race_between_warps(float* x) {
    __shared__ float tile[64];
    tile[threadIdx.x] = 0;
    __syncthreads();
    tile[threadIdx.x] = x[threadIdx.x];  // here
    __syncwarp();
    x[threadIdx.x] = tile[threadIdx.x ^ 32];  // or here
}

extern "C" __global__ void tile_overwritten(const float* x, float* y) {
    __shared__ float tile[32];
    float sum = 0;
    for (int first = 0; first < 64; first += 32) {
        tile[threadIdx.x] = x[first + threadIdx.x];  // or here
        __syncthreads();
        sum += tile[31 - threadIdx.x];  // here
    }
    y[threadIdx.x] = sum;
}

extern "C" __global__ void shuffle_orders_nothing(float* x) {
    __shared__ float tile[32];
    tile[threadIdx.x] = x[threadIdx.x];
    __shfl_sync(0xffffffff, x[threadIdx.x], 0);
    x[threadIdx.x] = tile[threadIdx.x ^ 1];  // here
}

extern "C" __global__ void reads_a_sum_too_soon(float* x) {
    atomicAdd(&x[0], 1.0f);  // or here
    if (threadIdx.x == 1) x[1] = x[0];  // here
}

extern "C" __global__ void all_write_one(float* x) {
    x[0] = threadIdx.x;  // here
}

extern "C" __global__ void sum_without_atomic(float* x) {
    x[0] += 1;  // here
}

extern "C" __global__ void blocks_write_and_read(float* x, float* y) {
    if (blockIdx.x == 0) x[threadIdx.x] = 1;  // or here
    else y[threadIdx.x] = x[threadIdx.x];  // here
}

extern "C" __global__ void blocks_read_and_write(float* x, float* y) {
    y[blockIdx.x] = x[0];  // or here
    if (blockIdx.x == 1) x[0] = 2;  // here
}

extern "C" __global__ void all_read_then_one_writes(float* x, float* y) {
    const float v = x[0];  // or here
    __syncthreads();
    y[blockIdx.x * blockDim.x + threadIdx.x] = v;
    if (blockIdx.x == 1 && threadIdx.x == 0) x[0] = 2;  // here
}

extern "C" __global__ void atomic_after_plain(float* x) {
    if (threadIdx.x == 0) x[0] = 0;  // or here
    atomicAdd(&x[0], 1.0f);  // here
}

extern "C" __global__ void first_block_clears(float* x) {
    if (blockIdx.x == 0 && threadIdx.x == 0) x[0] = 0;  // or here
    __syncthreads();
    atomicAdd(&x[0], 1.0f);  // here
}

extern "C" __global__ void plain_read_of_atomics(float* x, float* y) {
    atomicAdd(&x[0], 1.0f);  // here
    y[threadIdx.x] = x[0];  // or here
}

extern "C" __global__ void same_bytes(unsigned char* x) {
    x[threadIdx.x / 2] = 1;  // here
}

extern "C" __global__ void word_over_byte(unsigned char* x) {
    if (threadIdx.x == 0) x[2] = 1;  // or here
    else *(int*)x = 5;  // here
}

extern "C" __global__ void barrier_after_return(float* x, int n) {
    if (threadIdx.x >= n) return;
    __syncthreads();  // here
    x[threadIdx.x] = 1;
}

extern "C" __global__ void two_barriers(float* x) {
    if (threadIdx.x < 3) {
        __syncthreads();  // or here
    } else {
        __syncthreads();  // here
    }
    x[threadIdx.x] = 1;
}

extern "C" __global__ void not_in_own_mask(float* x) {
    x[threadIdx.x] = __shfl_sync(0x0000ffff, x[threadIdx.x], 0);  // here
}

extern "C" __global__ void mask_names_the_gone(float* x) {
    if (threadIdx.x >= 16) return;
    x[threadIdx.x] = __shfl_down_sync(0xffffffff, x[threadIdx.x], 1);  // here
}

extern "C" __global__ void source_outside_mask(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_xor_sync(0x0000ffff, x[threadIdx.x], 16);  // here
}

extern "C" __global__ void two_collectives(float* x) {
    if (threadIdx.x < 16) x[threadIdx.x] = __shfl_sync(0xffffffff, x[threadIdx.x], 0);  // or here
    else x[threadIdx.x] = __shfl_sync(0xffffffff, x[threadIdx.x], 0);  // here
}

extern "C" __global__ void two_masks(float* x) {
    const unsigned mask = threadIdx.x < 16 ? 0xffffffff : 0xffff0000;
    x[threadIdx.x] = __shfl_down_sync(mask, x[threadIdx.x], 1, 16);  // here
}

extern "C" __global__ void half_waits_for_the_block(float* x) {
    if (threadIdx.x < 16) __syncwarp();  // here
    __syncthreads();
    x[threadIdx.x] = 1;
}

extern "C" __global__ void local_beyond(float* x) {
    float mine[4];
    for (int i = 0; i <= 4; ++i)
        mine[i] = x[i];  // here
    x[threadIdx.x] = mine[threadIdx.x];
}

extern "C" __global__ void row_of_tile_beyond(float* x) {
    __shared__ float tile[4][8];
    tile[threadIdx.x][0] = x[threadIdx.x];  // here
    __syncthreads();
    x[threadIdx.x] = tile[0][threadIdx.x];
}

extern "C" __global__ void misaligned(const float* x, float4* y) {
    y[0] = *(const float4*)(x + 1);  // here
}

extern "C" __global__ void null_pointer(float* x, int n) {
    float* p = n ? x : nullptr;
    p[0] = 1;  // here
}

extern "C" __global__ void shift(int* x) {
    x[0] = 1 << x[1];  // here
}

extern "C" __global__ void division(int* x) {
    x[0] = x[1] % x[2];  // here
}

extern "C" __global__ void sum_overflows(int* x, int n) {
    x[0] = x[1] + n;  // here
}

extern "C" __global__ void difference_overflows(int* x) {
    x[0] = -2 - x[1];  // here
}

extern "C" __global__ void product_overflows(int* x, int n) {
    x[0] = n * n;  // here
}

extern "C" __global__ void negation_overflows(int* x) {
    x[0] = -x[1];  // here
}

extern "C" __global__ void cast_overflows(int* x, float f) {
    x[0] = (int)f;  // here
}
