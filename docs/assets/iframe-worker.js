/* Browsers start no worker from a page that was opened from disk, and the search of this site is one. There it runs in a
 * hidden frame instead, which is told and tells the same messages. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.appendChild(frame);
      const inner = frame.contentWindow, page = frame.contentDocument;
      inner.postMessage = data => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      inner.importScripts = (...urls) => urls.reduce((before, each) => before.then(() => new Promise((done, failed) => {
        const script = page.createElement("script");
        script.src = each;
        script.onload = done;
        script.onerror = failed;
        page.body.appendChild(script);
      })), Promise.resolve());
      this.frame = frame;
      inner.importScripts(url).then(() => {
        const waiting = this.waiting;
        this.waiting = null;
        waiting.forEach(data => this.postMessage(data));
      });
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }));
    }
    terminate() { this.frame.remove(); }
  };
}
