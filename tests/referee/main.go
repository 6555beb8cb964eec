// The referee: judges histories with porcupine and compares its verdicts with ours.
//
// Input: one JSON object a line (tests/sim/src/histories.rs writes them): operations of clients, the log that
// survived, and our checker's verdict. The model is a list of writes: a write appends and answers its revision, a read
// answers the newest value of its key and the revision, and one operation after all others reads the whole list. A
// write whose outcome is unknown returns at the end of time, so it may take effect anywhere, or after everything.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"reflect"

	"github.com/anishathalye/porcupine"
)

type operation struct {
	Write    bool  `json:"write"`
	Key      int64 `json:"key"`
	Value    int64 `json:"value"` // -1: no value was there
	Invoked  int64 `json:"invoked"`
	Returned int64 `json:"returned"`
	Revision int64 `json:"revision"` // -1: unknown
}

type entry struct {
	Key   int64 `json:"key"`
	Value int64 `json:"value"`
}

type history struct {
	Operations []operation `json:"operations"`
	Log        []entry     `json:"log"` // from revision 2 on, without a gap
	Ours       string      `json:"ours"` // empty: sound; else the property that is violated
}

type input struct {
	operation
	whole []entry // not nil: the read of the whole list
}

var model = porcupine.Model{
	Init: func() any { return []entry{} },
	Step: func(state, in, _ any) (bool, any) {
		list, call := state.([]entry), in.(input)
		revision := int64(len(list)) + 1
		if call.whole != nil {
			return reflect.DeepEqual(list, call.whole), list
		}
		if call.Write {
			next := append(append([]entry{}, list...), entry{call.Key, call.Value})
			return call.Revision == -1 || call.Revision == revision+1, next
		}
		value := int64(-1)
		for _, write := range list {
			if write.Key == call.Key {
				value = write.Value
			}
		}
		return value == call.Value && call.Revision == revision, list
	},
	Equal: func(a, b any) bool { return reflect.DeepEqual(a, b) },
}

func sound(h history) bool {
	var calls []porcupine.Operation
	last := int64(0)
	for i, o := range h.Operations {
		returned := o.Returned
		if o.Write && o.Revision == -1 {
			returned = math.MaxInt64
		} else {
			last = max(last, returned)
		}
		last = max(last, o.Invoked)
		calls = append(calls, porcupine.Operation{ClientId: i, Input: input{operation: o}, Call: o.Invoked, Return: returned})
	}
	whole := append([]entry{}, h.Log...)
	calls = append(calls, porcupine.Operation{
		ClientId: len(calls), Input: input{whole: whole}, Call: last + 1, Return: last + 2,
	})
	return porcupine.CheckOperations(model, calls)
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	var good, broken, differ int
	for lines.Scan() {
		var h history
		if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
			fmt.Fprintln(os.Stderr, "not a history:", err)
			os.Exit(2)
		}
		verdict := sound(h)
		if verdict {
			good++
		} else {
			broken++
		}
		if verdict != (h.Ours == "") {
			differ++
			if differ <= 5 {
				fmt.Printf("porcupine says sound: %v, ours %q: %s\n", verdict, h.Ours, lines.Text())
			}
		}
	}
	fmt.Printf("%d histories, %d sound and %d broken by porcupine's verdict, %d judged differently by ours\n",
		good+broken, good, broken, differ)
	if differ > 0 || good == 0 || broken == 0 {
		os.Exit(1)
	}
}
