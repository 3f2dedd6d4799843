{
  'target_defaults': {
    'cflags': ['-fvisibility=hidden', '-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-missing-field-initializers'],
    'cflags_cc!': ['-std=gnu++17', '-fno-exceptions'],
    'cflags_cc': ['-std=gnu++20', '-fno-exceptions', '-fno-rtti'],
    'defines': ['_GNU_SOURCE', '_FILE_OFFSET_BITS=64'],
    'include_dirs': ['.'],
  },
  'targets': [
    {
      'target_name': 'pagetide',
      'sources': ['<!@(find core addon -name \"*.cc\")'],
      'include_dirs': ['<!(node -p "require(\'node-addon-api\').include_dir")'],
      'defines': ['NAPI_VERSION=9', 'NODE_ADDON_API_DISABLE_CPP_EXCEPTIONS'],
    },
    {
      'target_name': 'pagetide-launch',
      'type': 'executable',
      'sources': ['<!@(find launch -name \"*.cc\")'],
    },
    {
      'target_name': 'pagetide-guest',
      'type': 'executable',
      'sources': ['<!@(find guest -name \"*.cc\")'],
      'libraries': ['-lpthread'],
    },
  ],
}
