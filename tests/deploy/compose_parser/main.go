// Reads a compose file with the parser of docker compose, and names its services.
package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
)

func main() {
	project, err := load(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(project.ServiceNames(), " "))
}

func load(files []string) (*types.Project, error) {
	options, err := cli.NewProjectOptions(files)
	if err != nil {
		return nil, err
	}
	return options.LoadProject(context.Background())
}
