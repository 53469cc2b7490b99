// Prints the size of the page's engine as a visitor loads it. It fails if the engine has more bytes than LIMIT in
// gzip, which every host offers, or in brotli, which most offer. `npm publish` runs it, so that no engine is
// published that was built for tests.
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

// It had 3.04 million in gzip on 28 November 2026.
const LIMIT = 3_300_000;
const bytes = await readFile(new URL('pkg/secateur_bg.wasm', import.meta.url));
const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 24, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length };
const sizes = { gzip: gzipSync(bytes, { level: 9 }).length, brotli: brotliCompressSync(bytes, { params }).length };
console.error(`the engine has ${bytes.length} bytes, ${sizes.gzip} in gzip, ${sizes.brotli} in brotli`);
for (const [name, size] of Object.entries(sizes)) {
  if (size > LIMIT) {
    console.error(`that is too much: at most ${LIMIT} bytes in ${name}. SECATEUR_PROFILE=page ./x wasm builds a small one`);
    process.exitCode = 1;
  }
}
