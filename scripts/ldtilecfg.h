/* Makes llama.cpp's AMX code sound under GCC; included in front of every C++ file of its build.
 *
 * GCC before 15 tells its optimiser that _tile_loadconfig() reads 8 of the 64 bytes that the
 * instruction reads (amxtileintrin.h), so most of a tile configuration on the stack is never
 * written, and the first matrix product on an Intel processor with AMX is a general protection
 * fault (https://github.com/ggml-org/llama.cpp/issues/20824, and pull request 26954). By the .ident
 * streamsink/llama/amx.py knows a build that has this.
 */
#if defined(__GNUC__) && !defined(__clang__)
__asm__(".ident \"ldtilecfg reads 64 bytes\"");
#ifdef __AMX_TILE__
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %0" ::"m"(*(const char(*)[64])(config)))
#endif
#endif
