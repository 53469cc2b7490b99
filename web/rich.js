// Markdown and formulas in an answer, by marked, DOMPurify and KaTeX. They are loaded once an answer needs them;
// where they were not installed (see vendor.mjs), answers stay plain text.

/** Matches text that is not plain: with emphasis, code, lists, tables, headings or formulas. */
const MARKED = /[*_`#|]|^\s*(?:[-+>]|\d+\.)\s|\$|\\[([a-z]/m;
/** Formulas: `$$…$$`, `\[…\]`, `\(…\)` and `$…$`, and a bare `\boxed{…}`. Code is matched first: a dollar in it begins no formula. */
const FORMULA = /(```[\s\S]*?(?:```|$)|`[^`\n]*`)|\$\$([\s\S]+?)\$\$|\\\[([\s\S]+?)\\\]|\\\(([\s\S]+?)\\\)|\$(?! )([^$\n]+?)(?<! )\$(?!\d)|(\\boxed\{[^{}]*\})/g;
// Private characters stand for formulas while Markdown is read.
const [OPEN, CLOSE] = ['\ue000', '\ue001'];

/** @type {Promise<{marked: any, purify: any, katex: any} | undefined> | undefined} */
let loaded;

function libraries() {
  loaded ??= Promise.all([import('./vendor/marked.js'), import('./vendor/purify.js'), import('./vendor/katex.js')]).then(
    ([marked, { default: purify }, { default: katex }]) => {
      const style = document.createElement('link');
      style.rel = 'stylesheet';
      style.href = new URL('./vendor/katex.css', import.meta.url).href;
      document.head.append(style);
      return { marked, purify, katex };
    },
    () => undefined,
  );
  return loaded;
}

/**
 * The text with its markup; undefined if plain text is enough.
 * @param {string} text
 * @returns {Promise<DocumentFragment | undefined>}
 */
export async function rich(text) {
  if (!MARKED.test(text)) return undefined;
  const found = await libraries();
  if (!found) return undefined;
  const { marked, purify, katex } = found;
  /** @type {{tex: string, display: boolean}[]} */
  const formulas = [];
  const source = text.replaceAll(OPEN, '').replaceAll(CLOSE, '').replace(FORMULA, (whole, code, d1, d2, i1, i2, boxed) => {
    if (code) return whole;
    formulas.push({ tex: d1 ?? d2 ?? i1 ?? i2 ?? boxed, display: d1 !== undefined || d2 !== undefined });
    return `${OPEN}${formulas.length - 1}${CLOSE}`;
  });
  // Tags in an answer are shown as text, and have no effect.
  const renderer = new marked.Renderer();
  renderer.html = ({ text }) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
  const html = marked.parse(source, { gfm: true, breaks: true, renderer });
  const nodes = purify.sanitize(html, {
    RETURN_DOM_FRAGMENT: true,
    // An answer may not load anything, and has no controls.
    FORBID_TAGS: ['img', 'style', 'form', 'input', 'button', 'video', 'audio', 'picture', 'svg', 'math'],
    FORBID_ATTR: ['style', 'id', 'class', 'src', 'srcset', 'name'],
  });
  const walk = document.createTreeWalker(nodes, NodeFilter.SHOW_TEXT);
  const texts = [];
  while (walk.nextNode()) texts.push(/** @type {Text} */ (walk.currentNode));
  for (const node of texts) {
    const parts = node.data.split(new RegExp(`${OPEN}(\\d+)${CLOSE}`));
    if (parts.length === 1) continue;
    node.replaceWith(...parts.map((part, i) => {
      if (i % 2 === 0) return part;
      const { tex, display } = formulas[Number(part)];
      const place = document.createElement('span');
      katex.render(tex, place, { displayMode: display, throwOnError: false, trust: false, maxExpand: 200, maxSize: 20 });
      return place;
    }));
  }
  for (const link of nodes.querySelectorAll('a')) {
    link.target = '_blank';
    link.rel = 'noopener noreferrer nofollow';
  }
  return nodes;
}
