// The examples that the page offers for the built-in model. The model can only solve chains of small sums. The value
// of a letter stands only in its thoughts, so the examples show what pruning costs as well as what it saves.

const PROBLEM = 'We count modulo 10. #1 d is 3. #2 r exceeds d by 9. #3 e equals r plus 7. ' +
  '#4 r drops by d. #5 c is r minus e. #6 h is 4. #7 c rises by 2. What is c?';

/**
 * @typedef {object} Example
 * @property {string} title
 * @property {string} text - what it shows
 * @property {string} prompt
 * @property {{[field: string]: string | number}} [fields] - settings of the form
 * @property {number} [context] - positions to load for
 * @property {string} [compare] - another policy to compare with
 */

/** @type {Example[]} */
export const EXAMPLES = [
  {
    title: 'Watch it cut',
    text: 'Every 40 tokens a probe cuts a quarter of the thoughts. The answer is still right: 2.',
    prompt: PROBLEM,
    fields: { budget: 'ratio:0.75' },
  },
  {
    title: 'Past the context window',
    text: 'A window of 256 tokens and more than twice as many thoughts. Without pruning it would stop in the middle.',
    prompt: PROBLEM,
    context: 256,
    fields: { policy: 'h2o', budget: 'tokens:128', positions: 'compact' },
  },
  {
    title: 'Side by side',
    text: 'The same prompt and seed with the full cache, one run after the other.',
    prompt: PROBLEM,
    fields: { budget: 'ratio:0.75' },
    compare: 'full',
  },
  {
    title: 'When it hurts',
    text: 'Three quarters of the thoughts have to go, also those that the answer needs. It becomes wrong.',
    prompt: PROBLEM,
    fields: { budget: 'ratio:0.25' },
    compare: 'full',
  },
];
