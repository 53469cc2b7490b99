// Prepares the npm package, before npm packs it. It checks that the engine and the built-in model are there, because
// npm would leave them out without an error. It copies the licences, which npm takes from this folder only.
import { copyFile, stat } from 'node:fs/promises';
import process from 'node:process';

const here = (path) => new URL(path, import.meta.url);
const needed = ['pkg/secateur.js', 'pkg/secateur_bg.wasm', 'models/tiny-reasoner/model.safetensors', 'models/tiny-reasoner/tokenizer.json'];
for (const path of needed) {
  if (await stat(here(path)).catch(() => undefined)) continue;
  console.error(`the package would lack ${path}: run ./x wasm first`);
  process.exit(1);
}
for (const name of ['LICENSE-APACHE', 'LICENSE-MIT']) await copyFile(here(`../${name}`), here(name));
