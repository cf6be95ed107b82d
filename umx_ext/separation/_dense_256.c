/* The loops of _dense.h with AVX2. */

#include "_dense.h"

#ifdef LOOPS

#include <immintrin.h>

#define TARGET __attribute__((target("avx2,fma")))
#define MULTIPLY multiply_256
#define RUN run_256

#define V 8
#define VEC __m256
#define INT __m256i
#define SET _mm256_set1_ps
#define LOAD _mm256_loadu_ps
#define STORE _mm256_storeu_ps
#define ADD _mm256_add_ps
#define SUB _mm256_sub_ps
#define MUL _mm256_mul_ps
#define DIV _mm256_div_ps
#define FMADD _mm256_fmadd_ps
#define FNMADD _mm256_fnmadd_ps
#define MIN _mm256_min_ps
#define MAX _mm256_max_ps
#define AND _mm256_and_ps
#define OR _mm256_or_ps
#define XOR _mm256_xor_ps
#define NEAREST(x) _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define WHERE_GREATER(a, b, yes, no) _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ))
#define AS_VEC _mm256_castsi256_ps
#define AS_INT _mm256_castps_si256
#define FLOAT _mm256_cvtepi32_ps
#define WHOLE _mm256_cvtps_epi32
#define SET_INT _mm256_set1_epi32
#define ADD_INT _mm256_add_epi32
#define MAX_INT _mm256_max_epi32
#define SHIFT _mm256_slli_epi32
#define ADD_PAIRS(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define STORE_PAIRS(to, whole)                                                                                         \
    _mm_storeu_si128((__m128i *)(to), _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)))

#include "_dense_loops.h"

#endif
