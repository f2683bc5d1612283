// Replicas and clients of the gateway bench, cheap enough to stand beside what is measured on two cores: an answer of
// Python costs several times what the gateway does with it.
//
//	streams serve   replicas: InferenceService.Generate at a given pace and ReplicaService.WatchLoad
//	streams load    a closed loop of clients; a line of JSON when its window opens and one when it closes
//
// Only Go's standard library, which speaks HTTP/2 without TLS. Protobuf messages come ready made from the bench.
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	if len(os.Args) > 1 {
		var err error
		switch os.Args[1] {
		case "serve":
			err = serve(os.Args[2:])
		case "load":
			err = load(os.Args[2:])
		default:
			err = fmt.Errorf("unknown command %q; there are serve and load", os.Args[1])
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "streams:", err)
			os.Exit(1)
		}
		return
	}
	fmt.Fprintln(os.Stderr, "usage: streams serve|load")
	os.Exit(2)
}

func h2c() *http.Protocols {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return protocols
}
