// Run a sparse model from Java: java -cp onnxruntime.jar:. Run MODEL LIBRARY INPUT OUTPUT
//
// INPUT and OUTPUT hold float32 numbers as they lie in memory, of the model's one input, where a length that the model
// leaves open is 1, and of its first output. Compiled in our tests, never run there: they have no onnxruntime for Java.
import ai.onnxruntime.NodeInfo;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import ai.onnxruntime.OrtSession;
import ai.onnxruntime.TensorInfo;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.FloatBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;

public final class Run {
    public static void main(String[] words) throws Exception {
        if (words.length != 4) throw new IllegalArgumentException("MODEL LIBRARY INPUT OUTPUT");
        OrtEnvironment environment = OrtEnvironment.getEnvironment();
        try (OrtSession.SessionOptions options = new OrtSession.SessionOptions()) {
            options.registerCustomOpLibrary(words[1]); // the sparse operators
            try (OrtSession session = environment.createSession(words[0], options)) {
                Map.Entry<String, NodeInfo> input = session.getInputInfo().entrySet().iterator().next();
                long[] shape = ((TensorInfo) input.getValue().getInfo()).getShape().clone();
                for (int i = 0; i < shape.length; i++) shape[i] = Math.max(shape[i], 1);
                byte[] bytes = Files.readAllBytes(Path.of(words[2]));
                FloatBuffer data = ByteBuffer.wrap(bytes).order(ByteOrder.nativeOrder()).asFloatBuffer();
                try (OnnxTensor x = OnnxTensor.createTensor(environment, data, shape);
                        OrtSession.Result result = session.run(Map.of(input.getKey(), x))) {
                    FloatBuffer made = ((OnnxTensor) result.get(0)).getFloatBuffer();
                    ByteBuffer out = ByteBuffer.allocate(4 * made.remaining()).order(ByteOrder.nativeOrder());
                    out.asFloatBuffer().put(made);
                    Files.write(Path.of(words[3]), out.array());
                }
            }
        }
    }
}
