/* The theme searches in a Web Worker, which browsers do not start from files.
   Where the site is read without a server, a hidden frame takes its place. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inner = (this.inner = frame.contentWindow)
      inner.importScripts = (...urls) =>
        urls.reduce((before, each) => before.then(() => load(inner, each)), Promise.resolve())
      // What the script sends goes to its creator, not to itself.
      inner.postMessage = data => {
        const event = new MessageEvent("message", { data })
        this.dispatchEvent(event)
        if (this.onmessage) this.onmessage(event)
      }
      this.ready = load(inner, url)
    }
    postMessage(data) {
      this.ready.then(() =>
        this.inner.dispatchEvent(new MessageEvent("message", { data })))
    }
    terminate() {
      this.inner.frameElement.remove()
    }
  }
  const load = (target, url) => new Promise((resolve, reject) => {
    const script = target.document.createElement("script")
    script.src = url
    script.onload = resolve
    script.onerror = reject
    target.document.body.appendChild(script)
  })
}
