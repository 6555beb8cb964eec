// The Kubernetes API from a page: bearer token, list then watch, and a resume after every cut.
// A token comes once in the address's fragment (never sent to a server) and stays in this tab's session.

const fragment = new URLSearchParams(location.hash.slice(1));
if (fragment.get("token")) {
  sessionStorage.setItem("token", fragment.get("token"));
  history.replaceState(null, "", location.pathname);
}

export const hasToken = () => Boolean(sessionStorage.getItem("token"));

/** A request with the session's token; throws with the server's own message. */
export async function request(path, options = {}) {
  const headers = { Accept: "application/json", Authorization: `Bearer ${sessionStorage.getItem("token") ?? ""}` };
  const answer = await fetch(path, { ...options, headers });
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    const error = new Error(body.message ?? `${answer.status} ${answer.statusText}`);
    error.code = answer.status;
    throw error;
  }
  return answer;
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Yields the lines of a streamed answer. */
export async function* lines(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n");
    rest = parts.pop();
    yield* parts;
  }
}

/**
 * Keeps `objects` (a Map by uid) equal to a collection: list, watch from there, again after every cut or 410.
 * `changed()` is called after each change; `state(text, ok)` says how the connection is.
 */
export async function follow(path, objects, changed, state) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 8000)) {
    try {
      const list = await (await request(path)).json();
      objects.clear();
      for (const item of list.items) objects.set(item.metadata.uid, item);
      changed();
      state("live", true);
      let version = list.metadata.resourceVersion;
      for (;;) {
        const answer = await request(`${path}?watch=1&allowWatchBookmarks=true&resourceVersion=${version}`);
        for await (const line of lines(answer)) {
          if (!line) continue;
          const { type, object } = JSON.parse(line);
          if (type === "ERROR") throw new Error(object.message);
          version = object.metadata.resourceVersion;
          if (type === "DELETED") objects.delete(object.metadata.uid);
          else if (type !== "BOOKMARK") objects.set(object.metadata.uid, object);
          if (type !== "BOOKMARK") changed();
        }
        wait = 500;
      }
    } catch (error) {
      if (error.code === 404) return;
      state(error.code === 401 ? "the token is not accepted: run `keelson up` again for a new link" : error.message, false);
      await pause(wait);
    }
  }
}
