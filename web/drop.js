// Files that are dropped onto the page.

/**
 * The files that were dropped, and those in the folders that were dropped.
 * @param {DataTransfer} transfer
 * @returns {Promise<File[]>}
 */
export async function droppedFiles({ items }) {
  const entries = [...items].map((item) => item.webkitGetAsEntry()).filter(Boolean); // before any await: items expire
  const files = [];
  for (const entry of entries) {
    if (entry.isFile) files.push(entry);
    else files.push(...(await listFolder(entry)).filter((inner) => inner.isFile));
  }
  return Promise.all(files.map((entry) => new Promise((resolve, reject) => entry.file(resolve, reject))));
}

async function listFolder(folder) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // at most 100 at a time
    if (!some.length) return all;
    all.push(...some);
  }
}
