/* The loops of _dense.h with AVX-512 and its instructions for pairs of integers. */

#include "_dense.h"

#ifdef LOOPS_512

#include <immintrin.h>

#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vnni")))
#define MULTIPLY multiply_512
#define RUN run_512

#define V 16
#define VEC __m512
#define INT __m512i
#define SET _mm512_set1_ps
#define LOAD _mm512_loadu_ps
#define STORE _mm512_storeu_ps
#define ADD _mm512_add_ps
#define SUB _mm512_sub_ps
#define MUL _mm512_mul_ps
#define DIV _mm512_div_ps
#define FMADD _mm512_fmadd_ps
#define FNMADD _mm512_fnmadd_ps
#define MIN _mm512_min_ps
#define MAX _mm512_max_ps
#define AND _mm512_and_ps
#define OR _mm512_or_ps
#define XOR _mm512_xor_ps
#define NEAREST(x) _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define WHERE_GREATER(a, b, yes, no) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes)
#define AS_VEC _mm512_castsi512_ps
#define AS_INT _mm512_castps_si512
#define FLOAT _mm512_cvtepi32_ps
#define WHOLE _mm512_cvtps_epi32
#define SET_INT _mm512_set1_epi32
#define ADD_INT _mm512_add_epi32
#define MAX_INT _mm512_max_epi32
#define SHIFT _mm512_slli_epi32
#define ADD_PAIRS _mm512_dpwssd_epi32
#define STORE_PAIRS(to, whole) _mm256_storeu_si256((__m256i *)(to), _mm512_cvtsepi32_epi16(whole))

#include "_dense_loops.h"

#endif
