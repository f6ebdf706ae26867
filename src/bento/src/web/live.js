// Puts the table that the server sends in place of the one that is there, whenever something changed.
"use strict";
const fleet = document.getElementById("fleet");
const state = document.getElementById("live");
const source = new EventSource("/events" + location.search);
source.addEventListener("open", () => { state.textContent = "live"; state.className = "good"; });
source.addEventListener("error", () => { state.textContent = "not connected: what is shown may be old"; state.className = "bad"; });
source.addEventListener("fleet", (event) => { fleet.innerHTML = event.data; });
