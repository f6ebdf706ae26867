"use strict";
// Without this script the page is the same, but stands still.
const events = new EventSource("/events");
const standing = document.getElementById("standing");
const button = document.getElementById("update");
const log = document.getElementById("log");

events.addEventListener("standing", (event) => {
  // made by the same program as the page, which leaves no text of others unescaped
  standing.innerHTML = event.data;
  button.disabled = standing.querySelector(".state").dataset.busy === "true";
});
events.addEventListener("clear", () => { if (log) log.textContent = ""; });
events.addEventListener("log", (event) => {
  if (!log) return;
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  log.append(event.data);
  if (atEnd) log.scrollTop = log.scrollHeight;
});
// after the connection was lost the log comes anew
events.addEventListener("error", () => { if (log) log.textContent = ""; });
