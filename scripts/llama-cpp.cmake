# Leaves out of llama-cpp-python's build what streamsink never loads, and mends what would crash.
#
# CMake reads this file after every project() call (CMAKE_PROJECT_INCLUDE). llama-cpp-python
# forces LLAMA_BUILD_COMMON into the cache, where -DLLAMA_BUILD_COMMON=OFF can't reach it; a
# normal variable of that name is seen before the cache's (policy CMP0126), so it is set here.
# Nothing here touches the compiler's optimisation or the backends.

if(PROJECT_IS_TOP_LEVEL)
    # The multimodal library, unless asked for; and `common`, the helpers of llama.cpp's own
    # programs, HTTP client included: of a build's minutes they take more than half.
    if(NOT LLAVA_BUILD)
        set(LLAVA_BUILD OFF)
        set(LLAMA_BUILD_COMMON OFF)
    endif()

    # Nobody reads the warnings of a dependency's build.
    if(NOT DEFINED LLAMA_ALL_WARNINGS)
        set(LLAMA_ALL_WARNINGS OFF)
    endif()

    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
        set(header "${CMAKE_CURRENT_LIST_DIR}/ldtilecfg.h")
        add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include \"${header}\">")
    endif()
endif()
