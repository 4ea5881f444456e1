// scatter_add, rung 2: four entries a thread, read 16 bytes at a time.
// Half the instructions were loads of 4 bytes; one load of 16 brings four positions, another four values, and four additions are
// under way at once. The last thread takes what is left over, one by one.
// Bytes and operations as before: there are fewer, wider requests for them.

extern "C" __global__ void scatter_add(float* W, const int* index, const float* values, int nnz) {
    const int k = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (k + 4 <= nnz) {
        const int4 i = *(const int4*)(index + k);
        const float4 v = *(const float4*)(values + k);
        atomicAdd(&W[i.x], v.x);
        atomicAdd(&W[i.y], v.y);
        atomicAdd(&W[i.z], v.z);
        atomicAdd(&W[i.w], v.w);
    } else {
        for (int last = k; last < nnz; ++last)
            atomicAdd(&W[index[last]], values[last]);
    }
}
