import { useCallback, useRef } from "react";

/** A function that stays the same from one drawing to the next and does what the latest one does. */
export function useStable<A extends unknown[], R>(latest: (...args: A) => R): (...args: A) => R {
  const ref = useRef(latest);
  ref.current = latest;
  return useCallback((...args: A) => ref.current(...args), []);
}
