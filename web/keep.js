// The conversation, kept in this browser so that it survives a reload.

/** @typedef {import('./reply.js').Saved} Saved */
/** @typedef {{question: string, replies: Saved[]}} Turn */
/**
 * @typedef {object} Conversation
 * @property {import('./messages.js').Message[]} history - as templates see it
 * @property {object} [from] - how the model was loaded, if it can be loaded again
 * @property {Turn[]} turns
 */

const KEY = 'secateur-conversation';
const VERSION = 1;

/**
 * Keeps the conversation. A browser keeps some megabytes for a site: if these are too few, traces are left out, the
 * oldest first, and at last the conversation.
 * @param {Conversation} conversation
 */
export function keepConversation(conversation) {
  const turns = conversation.turns.map(({ question, replies }) => ({ question, replies: replies.map((reply) => ({ ...reply })) }));
  for (;;) {
    try {
      localStorage.setItem(KEY, JSON.stringify({ version: VERSION, ...conversation, turns }));
      return;
    } catch {
      const reply = turns.flatMap(({ replies }) => replies).find(({ json }) => json !== undefined);
      if (!reply) return clearConversation();
      delete reply.json;
    }
  }
}

/** @returns {Conversation | undefined} */
export function keptConversation() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY));
    return kept?.version === VERSION ? kept : undefined;
  } catch {
    return undefined; // no conversation, or a browser without storage
  }
}

export function clearConversation() {
  try {
    localStorage.removeItem(KEY);
  } catch {
    // The browser has no storage.
  }
}
