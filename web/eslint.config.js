import js from '@eslint/js';

const browser = Object.fromEntries([
  'AbortController', 'AbortSignal', 'Blob', 'GPUAdapter', 'NodeFilter', 'Option', 'TextDecoder', 'TextEncoder', 'URL', 'URLSearchParams', 'Worker', 'addEventListener',
  'atob', 'console', 'document', 'fetch', 'innerHeight', 'innerWidth', 'localStorage', 'location', 'matchMedia', 'navigator', 'onmessage', 'parent', 'performance',
  'postMessage', 'requestAnimationFrame', 'scrollTo', 'sessionStorage', 'FileReaderSync', 'TransformStream', 'XMLHttpRequest', 'crypto', 'GPUBufferUsage', 'Response', 'scrollY', 'setTimeout', 'window', 'DataTransferItemList', 'ReadableStream', 'self',
].map((name) => [name, 'readonly']));

export default [
  { ignores: ['pkg/', 'types/', 'vendor/'] },
  js.configs.recommended,
  {
    languageOptions: { globals: { ...browser, onmessage: 'writable' } },
    rules: {
      'no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      eqeqeq: 'error',
      'no-var': 'error',
      'preserve-caught-error': 'off', // the messages tell the whole story

      'prefer-const': ['error', { destructuring: 'all' }],
    },
  },
];
