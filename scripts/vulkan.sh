# shellcheck shell=bash
# What llama.cpp's Vulkan back end is compiled with: a shader compiler, headers that are new enough, the loader. Sourced,
# never run; cache is the folder where edge keeps what it fetches. VULKAN_INCLUDE names a folder with vulkan/vulkan.h.
# shellcheck disable=SC2154

VULKAN_HEADERS=${VULKAN_HEADERS:-300} # of 1.4, at least; Debian 13 has 309, the 1.3.239 of Debian 12 does not compile

first_found() { # first_found FILE...: the first that exists, or nothing
  local file
  for file in "$@"; do [ ! -e "$file" ] || { printf '%s' "$file" && return; }; done
}

vulkan_loader() { # not just any libvulkan: browsers bring their own
  first_found "/usr/lib/$(${cc:-cc} -dumpmachine 2>/dev/null)/libvulkan.so.1" "/usr/lib/$(uname -m)-linux-gnu/libvulkan.so.1" \
    /usr/lib64/libvulkan.so.1 /usr/lib/libvulkan.so.1
}

vulkan_lacks() { # the Debian packages to install first, on one line
  local lacking=()
  command -v glslc >/dev/null || lacking+=(glslc)
  [ -n "$(first_found /usr/include/spirv/unified1/spirv.hpp /usr/local/include/spirv/unified1/spirv.hpp)" ] ||
    lacking+=(spirv-headers)
  [ -n "$(vulkan_loader)" ] || lacking+=(libvulkan1)
  printf '%s' "${lacking[*]}"
}

vulkan_flags() { # what CMake is told of headers and loader; fetches the headers where they are too old
  [ -n "$(vulkan_headers)" ] || fetch_vulkan_headers
  printf '%s' "-DVulkan_INCLUDE_DIR=$(vulkan_headers) -DVulkan_LIBRARY=$(vulkan_loader)"
}

vulkan_headers() { # the first folder whose headers are new enough, or nothing
  local place version
  for place in ${VULKAN_INCLUDE:+"$VULKAN_INCLUDE"} /usr/include /usr/local/include "$cache/vulkan/include"; do
    [ -f "$place/vulkan/vulkan_core.h" ] || continue
    version=$(awk '/define VK_HEADER_VERSION_COMPLETE .*\(0, 1, [4-9]/ { is_1_4 = 1 }
                   /define VK_HEADER_VERSION [0-9]/ { n = $3 } END { print is_1_4 ? n : 0 }' "$place/vulkan/vulkan_core.h")
    [ "$version" -lt "$VULKAN_HEADERS" ] || { printf '%s' "$place" && return; }
  done
}

fetch_vulkan_headers() { # Debian 13's, by apt with lists of its own: those of the system stay as they are
  local folder=$cache/vulkan keys=/usr/share/keyrings/debian-archive-keyring.gpg apt work
  work=$folder/.fetching
  if ! command -v apt-get >/dev/null || [ ! -f "$keys" ]; then
    die "the Vulkan headers are too old; set VULKAN_INCLUDE to a folder with those of 1.4.$VULKAN_HEADERS or later"
  fi
  say "fetching the Vulkan headers of Debian 13"
  rm -rf -- "$work"
  mkdir -p -- "$work/lists/partial" "$work/cache/archives/partial" 2>/dev/null ||
    die "$folder cannot be written; set EDGE_CACHE to a folder that can be"
  printf 'deb [signed-by=%s] http://deb.debian.org/debian trixie main\n' "$keys" >"$work/sources.list"
  apt=(apt-get -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")
  (cd -- "$work" && "${apt[@]}" update && "${apt[@]}" download libvulkan-dev && dpkg -x libvulkan-dev_*.deb unpacked) \
    >"$folder/fetch.log" 2>&1 ||
    die "the Vulkan headers cannot be fetched; check the network, or set VULKAN_INCLUDE (log: $folder/fetch.log)"
  rm -rf -- "$folder/include"
  mv -- "$work/unpacked/usr/include" "$folder/include"
  rm -rf -- "$work"
}
