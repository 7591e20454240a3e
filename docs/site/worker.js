// The search of a page that was opened from a disk: browsers start no workers there, so that the worker's script
// runs in a hidden frame instead. It has what the theme's search uses of a Worker.
"use strict";
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.onload = () => this.begin(address);
      document.body.append(this.frame);
    }

    begin(address) {
      const inside = this.frame.contentWindow;
      const script = inside.document.createElement("script");
      this.frame.onload = null;
      inside.postMessage = (data) => setTimeout(() => this.onmessage?.({ data }));
      script.onerror = (event) => this.onerror?.(event);
      script.onload = () => {
        const waiting = this.waiting;
        this.waiting = null;
        this.inside = inside;
        waiting.forEach((data) => this.postMessage(data));
      };
      script.src = address;
      inside.document.body.append(script);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else setTimeout(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
