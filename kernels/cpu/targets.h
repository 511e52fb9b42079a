// Include before any Highway header.
#pragma once

#include "base/simd_targets.h"
