// The model in the browser: WebGPU where it is there and agrees with the processor, else
// WebAssembly.

const RUNTIME = new URL("./runtime/", import.meta.url).href;
const AGREE = 0.02; // largest difference of probabilities between the two

/**
 * Fetch the model and start it.
 * @param {object} facts facts.json
 * @param {string} wanted "auto", "webgpu" or "wasm"
 * @param {(text: string, share: number|null) => void} report
 * @returns {Promise<{run: Function, backend: string, note: string}>}
 */
export async function startEngine(facts, wanted, report) {
  const model = await fetchWhole(facts.model, (share) => report("Loading the model", share));
  let note = "";
  if (wanted !== "wasm") {
    report("Looking for WebGPU", null);
    const found = await tryWebGpu(facts, model, wanted, report);
    if (found.session) return { ...engineOf(found, facts), note };
    note = found.note;
  }
  report("Starting WebAssembly", null);
  const ort = await loadRuntime("ort.wasm.min.mjs");
  const session = await createSession(ort, model, "wasm");
  const threads = ort.env.wasm.numThreads;
  const backend = `WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"}`;
  return { ...engineOf({ ort, session, backend }, facts), note };
}

/** A file with its progress; a short one is told, not handed on. */
async function fetchWhole({ file, bytes }, progress) {
  const answer = await fetch(new URL(file, import.meta.url));
  if (!answer.ok) throw new Error(`${file} could not be loaded (${answer.status})`);
  const whole = new Uint8Array(bytes);
  let done = 0;
  const reader = answer.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (done + part.value.length > bytes) {
      done += part.value.length;
      break;
    }
    whole.set(part.value, done);
    done += part.value.length;
    progress(done / bytes);
  }
  if (done !== bytes) {
    throw new Error(`${file} has another size than facts.json says; copy the whole folder again`);
  }
  return whole;
}

async function loadRuntime(file) {
  const ort = await import(RUNTIME + file);
  ort.env.logLevel = "error";
  ort.env.wasm.wasmPaths = RUNTIME;
  // Shared memory, which threads need, exists only in pages that are isolated by their headers.
  ort.env.wasm.numThreads = self.crossOriginIsolated
    ? Math.min(Math.max(navigator.hardwareConcurrency ?? 1, 1), 8)
    : 1;
  return ort;
}

function createSession(ort, model, provider) {
  return ort.InferenceSession.create(model, {
    executionProviders: [provider],
    graphOptimizationLevel: "all",
    logSeverityLevel: 3,
  });
}

async function tryWebGpu(facts, model, wanted, report) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  if (!adapter) return { note: "this browser offers no WebGPU" };
  const software = adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter ?? false;
  if (software && wanted === "auto") return { note: "WebGPU is emulated here" };
  try {
    report("Starting WebGPU", null);
    const ort = await loadRuntime("ort.webgpu.min.mjs");
    const session = await createSession(ort, model, "webgpu");
    report("Comparing WebGPU with the processor", null);
    const reference = await createSession(ort, model, "wasm");
    const difference = await disagreement(ort, session, reference, facts);
    await reference.release();
    if (difference <= AGREE) return { ort, session, backend: "WebGPU" };
    await session.release();
    return { note: `WebGPU was left out: its numbers differ by ${difference.toPrecision(2)}` };
  } catch (error) {
    return { note: `WebGPU was left out: ${error.message ?? error}` };
  }
}

/** Largest difference of category and stuff probabilities on a generated image. */
async function disagreement(ort, session, reference, facts) {
  const [height, width] = facts.input.fixed ?? [192, 256];
  const data = new Uint8Array(3 * height * width);
  for (let at = 0, state = 1; at < data.length; at += 1) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    const wave = Math.sin((at % width) / 17) + Math.cos(Math.floor(at / width) / 13);
    data[at] = 128 + 50 * wave + (state >>> 27);
  }
  const input = { data, padded: [height, width], valid: [height, width] };
  const [ours, theirs] = [
    await runGraph(ort, session, facts, input),
    await runGraph(ort, reference, facts, input),
  ];
  let most = 0;
  for (const name of ["top_probs", "stuff_logits"]) {
    if (!(name in ours)) continue;
    const spread = name === "stuff_logits" ? 10 : 1; // logits, of which a tenth is near enough
    theirs[name].data.forEach((value, at) => {
      const apart = Math.abs(value - ours[name].data[at]) / spread;
      most = Number.isNaN(apart) ? Infinity : Math.max(most, apart);
    });
  }
  return most;
}

function engineOf({ ort, session, backend }, facts) {
  return { backend, run: (input) => runGraph(ort, session, facts, input) };
}

/** Run once; the outputs by name, on the processor. */
async function runGraph(ort, session, facts, { data, padded, valid }) {
  const pixels = facts.input.dtype === "float32" ? Float32Array.from(data) : data;
  const feeds = {
    images: new ort.Tensor(facts.input.dtype, pixels, [1, 3, ...padded]),
    image_sizes: new ort.Tensor("int64", BigInt64Array.from(valid, BigInt), [1, 2]),
  };
  return session.run(feeds);
}
