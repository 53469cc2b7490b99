// The files of a model, for the engine: picked or dropped, or fetched from a server and kept in this browser.
//
// The engine takes `{name: {size, read(offset, length)}}` and reads what it needs, when it needs it, so that a model
// may be larger than the memory of a page. `read` cannot wait, which is why all of this runs in a worker: only there,
// `FileReaderSync` exists.
//
// A fetched model lies in the browser's private file system (OPFS), in a folder of its own. A download that was
// interrupted continues where it ended. Without such a file system, or without room in it, the files of a model last
// as long as the page.

/** @typedef {{size: number, read: (offset: number, length: number) => Uint8Array}} Source */
/** @typedef {(what: string, done: number, total: number) => void} Report */
/** @typedef {{name: string, url: string, size: number, etag: string, complete: boolean}} Kept */

const WANTED = /^(config|generation_config|tokenizer|tokenizer_config|secateur)\.json$|^chat_template\.jinja$|\.safetensors(\.index\.json)?$|\.gguf$/;
const WEIGHTS = /\.(safetensors|gguf)$/;
const SMALL = ['config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'chat_template.jinja', 'secateur.json'];
const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';
const MOST_PARTS = 999;
const PART = /-(\d{5})-of-(\d{5})\.gguf$/;
/** The folder of all models in the browser's file system. */
const FOLDER = 'models';
/** The label of the device that is opened only to find out whether memory can be allocated. */
export const TRIAL = 'trial';
/** What is known about the files of a model, in its folder. */
const LIST = 'secateur-files.json';

/** A number of bytes as text. */
export const fileSize = (bytes) => (bytes < 1e9 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`);

/** How often a broken connection is opened again, if nothing arrives. */
const ATTEMPTS = 3;

/** An error that another attempt would not avoid. */
class Refused extends Error {}

/** @param {Blob} blob @returns {Source} */
function sourceOf(blob) {
  // @ts-ignore FileReaderSync exists in workers only
  const reader = new FileReaderSync();
  return {
    size: blob.size,
    read: (offset, length) => new Uint8Array(reader.readAsArrayBuffer(blob.slice(offset, offset + length))),
  };
}

/**
 * The files that the user picked or dropped.
 * @param {File[]} files
 * @returns {Record<string, Source>}
 */
export function fromFiles(files) {
  const wanted = files.filter((file) => WANTED.test(file.name));
  if (!wanted.some((file) => WEIGHTS.test(file.name))) {
    throw new Error(
      'these files have no weights\n  expected: a .gguf file, or config.json, tokenizer.json and .safetensors files\n  found: ' +
        (files.map((file) => file.name).slice(0, 6).join(', ') || 'no files'),
    );
  }
  const ggufs = wanted.filter((file) => file.name.endsWith('.gguf'));
  const isFolder = wanted.some((file) => file.name === 'config.json');
  if (!isFolder && ggufs.length > 1 && !ggufs.every((file) => PART.test(file.name))) {
    throw new Error(`these are several models\n  expected: one GGUF file, or all parts of one\n  found: ${ggufs.map((file) => file.name).join(', ')}`);
  }
  return Object.fromEntries(wanted.map((file) => [file.name, sourceOf(file)]));
}

// --- what a server has ----------------------------------------------------------------------------------------------

/** @typedef {{name: string, url: string, size?: number, etag: string, version?: string, ranges: boolean}} Remote */

/**
 * What a server says about a file; undefined if it has no such file.
 * @param {string} name
 * @param {string} url
 * @returns {Promise<Remote | undefined>}
 */
async function ask(name, url) {
  const response = await get(url, { method: 'HEAD' });
  // Servers of single-page sites send their index page for a missing file.
  const isPage = response.headers.get('content-type')?.startsWith('text/html') && !name.endsWith('.html');
  if (response.status === 404 || isPage) return undefined;
  if (!response.ok) throw new Error(`the server refused a file of the model\n  at: ${url}\n  found: status ${response.status}`);
  const encoded = response.headers.get('content-encoding');
  const length = response.headers.get('content-length');
  return {
    name,
    url,
    // The length of a compressed body is not that of the file.
    size: length && !encoded ? Number(length) : undefined,
    etag: response.headers.get('x-linked-etag') ?? response.headers.get('etag') ?? response.headers.get('last-modified') ?? '',
    version: response.headers.get('etag') ?? undefined,
    ranges: response.headers.get('accept-ranges') === 'bytes',
  };
}

/** `fetch` with an error that names the address. */
async function get(url, options) {
  try {
    return await fetch(url, options);
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new Error(`the server cannot be reached\n  at: ${url}\n  found: ${error.message}\n  what to do: check the address; a server elsewhere has to allow this page (CORS)`);
  }
}

/**
 * The files of the model at `url`: a GGUF file, any part of a split one, or a folder in Hugging Face layout.
 * @param {string} url
 * @returns {Promise<Remote[]>}
 */
async function listing(url) {
  const must = async (name, address) => {
    const file = await ask(name, address);
    if (!file) throw new Error(`a file of the model does not exist\n  at: ${address}`);
    return file;
  };
  const { pathname } = new URL(url);
  if (pathname.endsWith('.gguf')) {
    const name = decodeURIComponent(pathname.split('/').at(-1));
    const part = PART.exec(name);
    const count = part ? Number(part[2]) : 1;
    if (count < 1 || count > MOST_PARTS) throw new Error(`a split model has 1 to ${MOST_PARTS} parts\n  at: ${url}\n  found: ${count}`);
    const beside = (each) => Object.assign(new URL(encodeURIComponent(each), url), { search: new URL(url).search }).href;
    const names = Array.from({ length: count }, (_, i) => (part ? name.replace(PART, `-${String(i + 1).padStart(5, '0')}-of-${part[2]}.gguf`) : name));
    return Promise.all(names.map((each) => must(each, beside(each))));
  }
  const folder = url.endsWith('/') ? url : `${url}/`;
  const at = (name) => new URL(name, folder).href;
  const small = await Promise.all(SMALL.map((name) => ask(name, at(name))));
  if (!small[0]) throw new Error(`the model has no config.json\n  at: ${folder}\n  expected: a folder in Hugging Face layout, or the address of a .gguf file`);
  const single = await ask(SINGLE, at(SINGLE));
  if (single) return [...small, single].filter(Boolean);
  const index = await must(INDEX, at(INDEX));
  const map = (await (await get(index.url)).json()).weight_map ?? {};
  const shards = [...new Set(Object.values(map))];
  const stray = shards.find((name) => !/^[\w.-]+\.safetensors$/.test(String(name)));
  if (stray !== undefined) throw new Error(`the index of the weights names a file that is none of the model's\n  at: ${index.url}\n  found: ${stray}`);
  if (!shards.length) throw new Error(`the index of the weights names no files\n  at: ${index.url}`);
  return [...small.filter(Boolean), index, ...(await Promise.all(shards.map((name) => must(name, at(name)))))];
}

/**
 * The address of a model on a hub with the interface of huggingface.co, from `ORG/NAME`, `ORG/NAME/FILE.gguf`, or
 * `ORG/NAME:KIND` with the quantization of a GGUF file.
 * @param {string} name
 * @param {string} [hub]
 */
export async function hubAddress(name, hub = 'https://huggingface.co') {
  const [plain, kind] = name.split(':');
  const [owner, model, ...path] = plain.split('/');
  if (!owner || !model) throw new Error(`this is no name of a model on the hub\n  expected: ORG/NAME, ORG/NAME/FILE.gguf or ORG/NAME:Q4_K_M\n  found: ${name}`);
  const base = `${hub.replace(/\/$/, '')}/${owner}/${model}/resolve/main/`;
  if (path.length) return base + path.join('/');
  let response;
  try {
    response = await get(`${hub.replace(/\/$/, '')}/api/models/${owner}/${model}`);
  } catch (error) {
    // Without a network, a kept model still loads.
    const here = (await kept()).find(({ url, complete }) => complete && url.startsWith(base) && (!kind || isOf(url, kind)));
    if (!here) throw error;
    return here.url;
  }
  if (!response.ok) throw new Error(`the hub does not give this model to everybody, or has no such model\n  at: ${owner}/${model}\n  found: status ${response.status}`);
  const files = ((await response.json()).siblings ?? []).map((file) => file.rfilename);
  // Repositories of GGUF files may have a config.json as well.
  if (!kind && files.includes('config.json') && files.some((file) => file.endsWith('.safetensors'))) return base;
  const ggufs = files.filter((file) => file.endsWith('.gguf') && !file.includes('mmproj')).sort();
  if (kind) {
    const file = ggufs.find((file) => isOf(file, kind));
    if (!file) throw new Error(`the model has no GGUF file of the kind ${kind}\n  at: ${owner}/${model}\n  found: ${ggufs.join(', ') || 'no GGUF files'}`);
    return base + file;
  }
  const best = ['Q4_K_M', 'Q4_0', 'Q8_0', 'Q6_K', 'Q5_K_M'].map((kind) => ggufs.find((file) => file.toUpperCase().includes(kind))).find(Boolean) ?? ggufs[0];
  if (!best) throw new Error(`the model has neither config.json nor a GGUF file\n  at: ${owner}/${model}`);
  return base + best;
}

/**
 * Whether a GGUF file has this quantization in its name, in any case.
 * @param {string} file
 * @param {string} kind
 */
function isOf(file, kind) {
  const name = file.toLowerCase();
  const at = name.lastIndexOf(kind.toLowerCase());
  return at >= 0 && /^$|[-./_]$/.test(name.slice(0, at)) && /^$|^[-./]/.test(name.slice(at + kind.length));
}

/**
 * A file on a server of which ranges are read synchronously: for headers, before a download.
 * @param {Remote} remote
 * @returns {Source}
 */
function distant({ url, size }) {
  return {
    size,
    read(offset, length) {
      const request = new XMLHttpRequest();
      request.open('GET', url, false);
      request.responseType = 'arraybuffer';
      request.setRequestHeader('Range', `bytes=${offset}-${offset + length - 1}`);
      request.send();
      if (request.status !== 206) throw new Error(`the server answered ${request.status} to a request for a part of the file`);
      return new Uint8Array(request.response);
    },
  };
}

// --- the browser's file system --------------------------------------------------------------------------------------

/** The folder of all models; undefined where the browser has no such file system. */
async function root(create = false) {
  try {
    return await (await navigator.storage.getDirectory()).getDirectoryHandle(FOLDER, { create });
  } catch {
    return undefined; // also if there is no such folder yet
  }
}

async function folderName(url) {
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', new TextEncoder().encode(url)));
  return [...hash.slice(0, 12)].map((byte) => byte.toString(16).padStart(2, '0')).join('');
}

/** @returns {Promise<Record<string, Kept>>} */
async function readList(folder) {
  try {
    return JSON.parse(await (await (await folder.getFileHandle(LIST)).getFile()).text()).files;
  } catch {
    return {}; // none yet, or one that was written in part: the files are fetched again
  }
}

async function write(folder, name, bytes, at) {
  const handle = await (await folder.getFileHandle(name, { create: true })).createSyncAccessHandle();
  try {
    if (at === undefined) handle.truncate(0);
    handle.write(bytes, { at: at ?? 0 });
    handle.flush();
  } finally {
    handle.close();
  }
}

const writeList = (folder, url, files) => write(folder, LIST, new TextEncoder().encode(JSON.stringify({ url, files })));

/**
 * The models that are kept in this browser, with the bytes that are here and the bytes that they have.
 * @returns {Promise<{url: string, bytes: number, size: number, complete: boolean}[]>}
 */
export async function kept() {
  const models = [];
  const all = await root();
  if (!all) return models;
  for await (const folder of all.values()) {
    // A model may be removed meanwhile, here or in another tab.
    const model = folder.kind === 'directory' && (await describe(folder).catch(() => undefined));
    if (model) models.push(model);
  }
  return models;
}

/** The model in this folder; undefined if no part of it is here. */
async function describe(folder) {
  const files = await readList(folder);
  const entries = Object.values(files);
  if (!entries.length) return undefined; // another tab may be writing the list
  let bytes = 0;
  for await (const file of folder.values()) if (file.name !== LIST) bytes += (await file.getFile()).size;
  const { url } = JSON.parse(await (await (await folder.getFileHandle(LIST)).getFile()).text());
  return { url, bytes, size: entries.reduce((sum, file) => sum + file.size, 0), complete: entries.every((file) => file.complete) };
}

/**
 * Removes a kept model.
 * @param {string} url
 */
export async function forget(url) {
  await (await root())?.removeEntry(await folderName(url), { recursive: true });
}

/**
 * Fetches a file into the folder, from where an earlier attempt ended.
 * @param {(n: number) => void} arrived
 */
async function fetchInto(folder, remote, record, arrived, signal) {
  const { name, size, etag, ranges } = remote;
  const handle = await (await folder.getFileHandle(name, { create: true })).createSyncAccessHandle().catch((error) => {
    throw new Error(`a file of the model is in use\n  at: ${name}\n  found: ${error.message}\n  what to do: close the other tab that loads this model`);
  });
  try {
    let at = handle.getSize();
    // A part can be continued only if it is of the version that the server has now, and if its end is known.
    if (at > 0 && (!ranges || !etag || record?.etag !== etag || size === undefined || at > size)) handle.truncate((at = 0));
    arrived(at);
    for (let attempt = 0; ; attempt++) {
      const before = at;
      try {
        if (remote.size !== undefined && at >= remote.size) break;
        const response = await get(remote.url, { signal, headers: at ? { Range: `bytes=${at}-` } : {} });
        if (at && response.status === 416) {
          arrived(-at);
          handle.truncate((at = 0));
          throw new Error('the server has no more of this file');
        }
        if (!response.ok) throw new Refused(`the server refused a file of the model\n  at: ${remote.url}\n  found: status ${response.status}`);
        const version = response.headers.get('etag');
        if (version && remote.version && version !== remote.version) {
          throw new Refused(`a file changed while it was fetched\n  at: ${remote.url}\n  what to do: load the model again`);
        }
        if (at && response.status !== 206) {
          arrived(-at);
          handle.truncate((at = 0));
        }
        for (const reader = response.body.getReader(); ; ) {
          const { done, value } = await reader.read();
          if (done) break;
          if (handle.write(value, { at }) !== value.length) throw new Refused('the browser has no room for more of the model');
          at += value.length;
          arrived(value.length);
        }
        if (remote.size === undefined || at === remote.size) break;
        throw new Error('the connection was closed');
      } catch (error) {
        handle.flush();
        if (error.name === 'AbortError' || error instanceof Refused) throw error;
        if (error.name === 'QuotaExceededError') throw new Refused(`the browser has no room for more of the model\n  found: ${error.message}\n  what to do: remove a model that is kept here, or free space on the disk`);
        // A connection that brought bytes resets the number of attempts.
        if (at > before) attempt = 0;
        if (attempt === ATTEMPTS || !ranges) {
          const next = ranges && etag ? 'the download goes on where it ended' : 'this server gives no parts of files, so it begins anew';
          throw new Error(
            `the download was interrupted\n  at: ${remote.url}\n  found: ${error.message}, after ${at} of ${size ?? 'unknown'} bytes\n` +
              `  what to do: load the model again; ${next}`,
          );
        }
        await new Promise((resolve) => setTimeout(resolve, 500 * 2 ** attempt));
      }
    }
    handle.flush();
    return at;
  } finally {
    handle.close();
  }
}

/**
 * The model at `url`, from this browser if it is kept here, else fetched and kept. `check` is called before the
 * weights are fetched, with files of which ranges can be read. If it throws, the model is refused.
 * @param {string} url
 * @param {{report: Report, check?: (files: Record<string, Source>) => Promise<void>, signal?: AbortSignal, note?: (text: string) => void}} options
 * @returns {Promise<Record<string, Source>>}
 */
export async function fetchModel(url, { report, check, signal, note }) {
  let remotes;
  try {
    remotes = await listing(url);
  } catch (error) {
    // Without a network, a kept model still loads.
    const here = await complete(url);
    if (!here) throw error;
    note?.(`The copy in this browser is used, because the server failed: ${error.message.split('\n')[0]}.`);
    return here;
  }
  const total = remotes.reduce((sum, file) => sum + (file.size ?? 0), 0);
  if (check && remotes.filter(({ name }) => WEIGHTS.test(name)).every(({ size, ranges }) => size && ranges)) {
    report('Reading the header of the model', 0, 0);
    const files = {};
    for (const remote of remotes) {
      files[remote.name] = WEIGHTS.test(remote.name) ? distant(remote) : new Uint8Array(await (await drain(remote, () => undefined, signal)).arrayBuffer());
    }
    await check(files);
  }
  let done = 0;
  const arrived = (name) => (n) => report(name, (done += n), total);
  const { quota = 0, usage = 0 } = (await navigator.storage?.estimate?.()) ?? {};
  const all = await root(true);
  const folder = all && (await all.getDirectoryHandle(await folderName(url), { create: true }));
  const records = folder ? await readList(folder) : {};
  const sizeHere = Object.values(records).reduce((sum, { size }) => sum + size, 0);
  if (!folder || (quota && total - sizeHere > quota - usage)) {
    note?.(
      folder
        ? `This browser gives the page room for ${fileSize(quota - usage)}, and the model has ${fileSize(total)}: it will be fetched again at the next visit.`
        : 'This browser keeps no files for pages: the model will be fetched again at the next visit.',
    );
    const files = {};
    for (const remote of remotes) files[remote.name] = sourceOf(await drain(remote, arrived(remote.name), signal));
    return files;
  }
  // This asks the browser not to delete gigabytes when the disk is full.
  navigator.storage.persist?.().catch(() => undefined);
  const old = { ...records };
  for (const name of Object.keys(records)) {
    if (remotes.some((remote) => remote.name === name)) continue;
    delete records[name]; // the model has no such file any more
    await folder.removeEntry(name).catch(() => undefined);
  }
  for (const { name, url: address, size = 0, etag } of remotes) {
    const same = old[name] && old[name].etag === etag && (etag || size > 0);
    const whole = same && old[name].complete && (size === 0 || old[name].size === size);
    records[name] = whole ? old[name] : { name, url: address, size, etag, complete: false };
    // The old file is removed before the list says that a part of the new version is here.
    if (!same) await folder.removeEntry(name).catch(() => undefined);
  }
  await writeList(folder, url, records);
  const files = {};
  for (const remote of remotes) {
    const record = records[remote.name];
    if (record.complete) arrived(remote.name)(record.size);
    else {
      record.size = await fetchInto(folder, remote, old[remote.name], arrived(remote.name), signal);
      record.complete = true;
      await writeList(folder, url, records);
    }
    files[remote.name] = sourceOf(await (await folder.getFileHandle(remote.name)).getFile());
  }
  return files;
}

/** The files of a model that is completely here; undefined if a part is missing. */
async function complete(url) {
  const folder = await (await root())?.getDirectoryHandle(await folderName(url)).catch(() => undefined);
  const records = folder ? Object.values(await readList(folder)) : [];
  if (!records.length || !records.every((record) => record.complete)) return undefined;
  const files = {};
  for (const { name } of records) files[name] = sourceOf(await (await folder.getFileHandle(name)).getFile());
  return files;
}

/** Fetches a file into a blob, which the browser may keep on its disk. */
async function drain(remote, arrived, signal) {
  const response = await get(remote.url, { signal });
  if (!response.ok) throw new Error(`the server refused a file of the model\n  at: ${remote.url}\n  found: status ${response.status}`);
  const counted = response.body.pipeThrough(
    new TransformStream({
      transform(chunk, controller) {
        arrived(chunk.length);
        controller.enqueue(chunk);
      },
    }),
  );
  return new Response(counted).blob();
}

// --- room on the GPU ------------------------------------------------------------------------------------------------

/**
 * Allocates buffers of this many bytes on the GPU and frees them. WebGPU does not report the amount of memory, so
 * this is the only way to refuse a model before gigabytes of it are read.
 * @param {number} bytes
 * @returns {Promise<boolean>}
 */
export async function hasRoom(bytes) {
  const adapter = await navigator.gpu?.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) return false;
  const { maxBufferSize } = adapter.limits;
  const device = await adapter.requestDevice({ label: TRIAL, requiredLimits: { maxBufferSize } });
  const buffers = [];
  device.pushErrorScope('out-of-memory');
  try {
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
    for (let left = bytes; left > 0; ) {
      const size = Math.min(left, maxBufferSize, 2 ** 30) & ~3;
      if (size <= 0) break;
      buffers.push(device.createBuffer({ size, usage }));
      left -= size;
    }
    return (await device.popErrorScope()) === null;
  } catch {
    return false;
  } finally {
    for (const buffer of buffers) buffer.destroy();
    device.destroy();
  }
}
