// The page's side of the worker: questions out, answers back.

/**
 * Start the worker.
 *
 * Its first lines come from a blob: such a worker is held to the page's Content-Security-Policy,
 * one from a file would have none.
 * @param {(text: string, share: number|null) => void} onProgress
 * @returns {{ask: (action: string, values: object) => Promise<any>}}
 */
export function connect(onProgress) {
  const lines = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const address = URL.createObjectURL(new Blob([lines], { type: "text/javascript" }));
  const worker = new Worker(address, { type: "module" });
  const waiting = new Map();
  let last = 0;
  worker.onmessage = ({ data }) => {
    if ("progress" in data) {
      onProgress(data.progress, data.share);
      return;
    }
    const { done, failed } = waiting.get(data.id);
    waiting.delete(data.id);
    if ("error" in data) failed(new Error(data.error));
    else done(data.answer);
  };
  worker.onerror = (event) => {
    const error = new Error(`the worker stopped (${event.message || "it could not be loaded"})`);
    for (const { failed } of waiting.values()) failed(error);
    waiting.clear();
  };
  return {
    ask(action, values) {
      last += 1;
      return new Promise((done, failed) => {
        waiting.set(last, { done, failed });
        const transfer = values.source instanceof ImageBitmap ? [values.source] : [];
        worker.postMessage({ id: last, action, ...values }, transfer);
      });
    },
  };
}
