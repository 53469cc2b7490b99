// How large the page's engine is on its way to a visitor: `node size.mjs LIMIT` fails if it has more than LIMIT bytes in gzip,
// which every host offers, or in brotli, which most offer.
import { readFile } from 'node:fs/promises';
import process from 'node:process';
import { brotliCompressSync, constants, gzipSync } from 'node:zlib';

const limit = Number(process.argv[2]);
const bytes = await readFile(new URL('pkg/secateur_bg.wasm', import.meta.url));
const params = { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 24, [constants.BROTLI_PARAM_SIZE_HINT]: bytes.length };
const sizes = { gzip: gzipSync(bytes, { level: 9 }).length, brotli: brotliCompressSync(bytes, { params }).length };
console.error(`the engine has ${bytes.length} bytes, ${sizes.gzip} in gzip, ${sizes.brotli} in brotli`);
for (const [name, size] of Object.entries(sizes)) {
  if (size > limit) {
    console.error(`that is too much: at most ${limit} bytes in ${name}`);
    process.exitCode = 1;
  }
}
