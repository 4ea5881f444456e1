// CUDA C++ as plain C++ on one CPU core: put in front of a kernel's text, it gives a meaning to every word that CUDA adds.
//
// Every load and store of the kernel is seen: g++ -fsanitize=thread puts a call __tsan_read4(address) before each, and they
// land here instead of in its own library. g++ -fsanitize=undefined reports indices past fixed arrays, misaligned wide loads and
// overflows in the same way. What is done about them is in machine.h.
#pragma once
#include <math.h>
#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("cu_shared")))    // one section: found and cleared as a whole
#define __constant__ static __attribute__((section("cu_builtin")))

#define CU_VECTOR(T, name)                                                                        \
    typedef cu::Vector<T, 2> name##2; typedef cu::Vector<T, 4> name##4;                           \
    CU_PLAIN static constexpr name##2 make_##name##2(T x, T y) { return name##2(x, y); }             \
    CU_PLAIN static constexpr name##4 make_##name##4(T x, T y, T z, T w) { return name##4(x, y, z, w); }
CU_VECTOR(float, float) CU_VECTOR(int, int) CU_VECTOR(unsigned, uint) CU_VECTOR(unsigned char, uchar)

#define CU_KERNEL(name) extern "C" const cu::Fault* cu_launch_##name(const unsigned* grid, const unsigned* shape,               \
        unsigned shared_bytes, int order, void** arguments, const cu::Region* arrays, int array_count, cu::Record* room, size_t rooms) { \
        return cu::launch(::name, grid, shape, shared_bytes, order, arguments, arrays, array_count, room, rooms); }
extern "C" inline size_t cu_record_count() { return cu::record_count; }
__attribute__((used)) static size_t (*cu_keep)() = cu_record_count;

// ---- what the compiler calls

#define CU_HERE (uintptr_t)__builtin_return_address(0)
#define CU_HOOK(n)                                                                                                  \
    CU_PLAIN void __tsan_read##n(void* p) { cu::access(p, n, cu::READ, 0, CU_HERE); }                               \
    CU_PLAIN void __tsan_write##n(void* p) { cu::access(p, n, cu::WRITE, 0, CU_HERE); }                             \
    CU_PLAIN void __tsan_unaligned_read##n(void* p) { cu::access(p, n, cu::READ, 0, CU_HERE); }                     \
    CU_PLAIN void __tsan_unaligned_write##n(void* p) { cu::access(p, n, cu::WRITE, 0, CU_HERE); }
extern "C" {
CU_HOOK(1) CU_HOOK(2) CU_HOOK(4) CU_HOOK(8) CU_HOOK(16)
CU_PLAIN void __tsan_read_range(void* p, size_t n) { cu::access(p, n, cu::READ, 0, CU_HERE); }
CU_PLAIN void __tsan_write_range(void* p, size_t n) { cu::access(p, n, cu::WRITE, 0, CU_HERE); }
CU_PLAIN void __tsan_func_entry(void*) {}
CU_PLAIN void __tsan_func_exit() {}
CU_PLAIN void __tsan_init() {}
struct CuSource { const char* file; unsigned line, column; };
#define CU_UNDEFINED(name, words, ...) CU_PLAIN void __ubsan_handle_##name(CuSource* at, ##__VA_ARGS__) { \
    cu::report(cu::UNDEFINED, at->line, 0); strncpy(cu::fault.text, words, sizeof cu::fault.text - 1); cu::die(); }
CU_UNDEFINED(out_of_bounds, "an index past the end of a fixed array", void*)
struct CuMismatch { CuSource at; void* type; unsigned char alignment, use; };
CU_PLAIN void __ubsan_handle_type_mismatch_v1(CuMismatch* m, uintptr_t p) {
    const unsigned multiple = 1u << m->alignment;                                 // 1: it is the end of an array that was passed
    cu::report(p && p % multiple == 0 ? cu::OUT_OF_BOUNDS : cu::UNDEFINED, m->at.line, 0);
    cu::fault.at.use = m->use == cu::WRITE; cu::fault.address = p; cu::fault.a = 4;
    if (p) snprintf(cu::fault.text, sizeof cu::fault.text, "an address that is no multiple of %u bytes", multiple);
    else strcpy(cu::fault.text, "a null pointer");
    cu::die();
}
CU_UNDEFINED(shift_out_of_bounds, "a shift by more bits than there are", void*, void*)
CU_UNDEFINED(divrem_overflow, "a division by zero, or of the lowest integer by -1", void*, void*)
CU_UNDEFINED(add_overflow, "an integer sum that overflows", void*, void*)
CU_UNDEFINED(sub_overflow, "an integer difference that overflows", void*, void*)
CU_UNDEFINED(mul_overflow, "an integer product that overflows", void*, void*)
CU_UNDEFINED(negate_overflow, "an integer that overflows when negated", void*)
CU_UNDEFINED(float_cast_overflow, "a float that does not fit the integer it is cast to", void*)
CU_UNDEFINED(pointer_overflow, "a pointer that wraps around", void*, void*)
CU_UNDEFINED(vla_bound_not_positive, "an array of no positive length", void*)
CU_UNDEFINED(load_invalid_value, "a bool that is neither true nor false", void*)
CU_UNDEFINED(nonnull_arg, "a null pointer where none may be")
CU_UNDEFINED(missing_return, "a function that ends without its return")
}

// ---- what a kernel calls

#define __syncthreads() cu::leave(cu::AT_BARRIER, __LINE__)
#define __syncwarp(...) ((void)cu::collective(__VA_OPT__((unsigned)(__VA_ARGS__)) __VA_OPT__(&) 0xffffffffu, 0, -1, true, __LINE__))
#define CU_LANE (cu::current % cu::WARP)
CU_PLAIN static inline int cu_source_down(int by, int width) { const int l = CU_LANE; return (l & (width - 1)) + by < width ? l + by : -1; }
CU_PLAIN static inline int cu_source_up(int by, int width) { const int l = CU_LANE; return (l & (width - 1)) >= by ? l - by : -1; }
CU_PLAIN static inline int cu_source_xor(int by, int width) { const int l = CU_LANE; return (l ^ by) < (l & ~(width - 1)) + width ? l ^ by : -1; }
CU_PLAIN static inline int cu_source_lane(int of, int width) { return (CU_LANE & ~(width - 1)) + (of & (width - 1)); }
#define CU_SHUFFLE(name) template <class T> CU_PLAIN inline T cu_shuffle_##name(int line, unsigned mask, T value, int by, int width = 32) \
    { return cu::shuffle(line, mask, value, cu_source_##name(by, width)); }
CU_SHUFFLE(down) CU_SHUFFLE(up) CU_SHUFFLE(xor) CU_SHUFFLE(lane)
#define __shfl_down_sync(...) cu_shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cu_shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cu_shuffle_xor(__LINE__, __VA_ARGS__)
#define __shfl_sync(...) cu_shuffle_lane(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, yes) cu::ballot(__LINE__, mask, yes)
#define __any_sync(mask, yes) (cu::ballot(__LINE__, mask, yes) != 0)
#define __all_sync(mask, yes) (cu::ballot(__LINE__, mask, yes) == (unsigned)(mask))
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)

#define CU_ATOMIC(name, arguments, change) template <class T, class U> CU_PLAIN inline T cu_##name arguments { \
    cu::access(p, sizeof *p, cu::ATOMIC, line, 0); const T old = *p; change; return old; }
CU_ATOMIC(atomicAdd, (int line, T* p, U v), *p = old + (T)v)
CU_ATOMIC(atomicMax, (int line, T* p, U v), if ((T)v > old) *p = (T)v)
CU_ATOMIC(atomicMin, (int line, T* p, U v), if ((T)v < old) *p = (T)v)
CU_ATOMIC(atomicExch, (int line, T* p, U v), *p = (T)v)
CU_ATOMIC(atomicCAS, (int line, T* p, U expected, U v), if (old == (T)expected) *p = (T)v)
#define atomicAdd(...) cu_atomicAdd(__LINE__, __VA_ARGS__)
#define atomicMax(...) cu_atomicMax(__LINE__, __VA_ARGS__)
#define atomicMin(...) cu_atomicMin(__LINE__, __VA_ARGS__)
#define atomicExch(...) cu_atomicExch(__LINE__, __VA_ARGS__)
#define atomicCAS(...) cu_atomicCAS(__LINE__, __VA_ARGS__)

template <class A, class B> constexpr auto min(A a, B b) -> std::common_type_t<A, B> { return a < b ? a : b; }
template <class A, class B> constexpr auto max(A a, B b) -> std::common_type_t<A, B> { return a > b ? a : b; }
template <class T> inline T __ldg(const T* p) { return *p; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(int v) { return __builtin_ffs(v); }
static inline int __clz(int v) { return v ? __builtin_clz(v) : 32; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
#define __expf expf
#define __logf logf
