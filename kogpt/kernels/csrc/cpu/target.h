// Compiles what follows for the instruction sets that KOGPT_TARGET names, up to KOGPT_END_TARGET.
//
// Everything from the standard library must be included before: its inline functions are shared
// with other sources, and must run on every processor.
#if defined(__clang__)
#define KOGPT_PRAGMA(text) _Pragma(#text)
#define KOGPT_ATTRIBUTE(target_names) \
  KOGPT_PRAGMA(clang attribute push(__attribute__((target(target_names))), apply_to = function))
#define KOGPT_BEGIN_TARGET KOGPT_ATTRIBUTE(KOGPT_TARGET)
#define KOGPT_END_TARGET _Pragma("clang attribute pop")
#else
#define KOGPT_PRAGMA(text) _Pragma(#text)
#define KOGPT_OPTIONS(target_names) KOGPT_PRAGMA(GCC target(target_names))
#define KOGPT_BEGIN_TARGET _Pragma("GCC push_options") KOGPT_OPTIONS(KOGPT_TARGET)
#define KOGPT_END_TARGET _Pragma("GCC pop_options")
#endif
