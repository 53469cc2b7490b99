// Copies the libraries that rich.js loads from node_modules into vendor/, which git ignores. `npm run vendor` calls it.
import { copyFile, mkdir, readdir, rm } from 'node:fs/promises';

const from = new URL('./node_modules/', import.meta.url);
const to = new URL('./vendor/', import.meta.url);
const files = {
  'marked/lib/marked.esm.js': 'marked.js',
  'marked/LICENSE': 'marked.LICENSE',
  'dompurify/dist/purify.es.mjs': 'purify.js',
  'dompurify/LICENSE': 'purify.LICENSE',
  'katex/dist/katex.mjs': 'katex.js',
  'katex/dist/katex.min.css': 'katex.css',
  'katex/LICENSE': 'katex.LICENSE',
};

await rm(to, { recursive: true, force: true });
await mkdir(new URL('fonts/', to), { recursive: true });
for (const [source, target] of Object.entries(files)) await copyFile(new URL(source, from), new URL(target, to));
for (const name of await readdir(new URL('katex/dist/fonts/', from))) {
  if (name.endsWith('.woff2')) await copyFile(new URL(`katex/dist/fonts/${name}`, from), new URL(`fonts/${name}`, to));
}
