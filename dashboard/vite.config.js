import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// `npm run dev` shows the page from its sources, with the API of a server that runs beside it.
const api = process.env.RAPIDFIREAI_SERVER ?? "http://127.0.0.1:8851";

export default defineConfig({
  base: "./",
  plugins: [react()],
  build: {
    outDir: process.env.RAPIDFIREAI_STATIC ?? "../src/rapidfireai/server/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 700,
  },
  server: { proxy: { "/api": api } },
  test: { include: ["src/**/*.test.ts"] },
});
